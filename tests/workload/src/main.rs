//! The program that runs inside test guests.

fn main() {}
