//! `mutations/run` breaks the router in each of the ways that are kept beside it; here, that each can still be made.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn every_mutation_can_be_made() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = fs::read_dir(root.join("tests/sim/mutations")).expect("the mutations");
    let files = folder.map(|entry| entry.expect("an entry").path());
    let patches = files.filter(|path| path.extension().is_some_and(|extension| extension == "patch"));
    let mut count = 0;
    for patch in patches {
        let outcome = Command::new("git")
            .args(["apply", "--check"])
            .arg(&patch)
            .current_dir(root)
            .output()
            .expect("git runs");
        let reason = String::from_utf8_lossy(&outcome.stderr);
        assert!(
            outcome.status.success(),
            "{} is to be made again: {reason}",
            patch.display()
        );
        count += 1;
    }
    assert!(count > 10, "only {count} mutations");
}
