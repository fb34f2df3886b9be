//! Files that are shipped or that people have, and the reference that documents every attribute.

#[test]
fn placeholder() {}
