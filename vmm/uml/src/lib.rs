//! User Mode Linux: its command line and its management console.
