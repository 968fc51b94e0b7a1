//! Memory control groups, version 1, version 2 and both at once.
