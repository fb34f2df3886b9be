//! The `linkrouterd` binary.
fn main() {}
