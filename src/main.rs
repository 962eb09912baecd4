//! The `laud` command.

fn main() {}
