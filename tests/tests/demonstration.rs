//! The demonstration of what the cluster may decide, run as a stranger runs it.
//!
//! Pins what only a reader of its output would miss: that the commands which README and script show
//! still do what they say, in one cluster, one after the other. The script checks each step itself;
//! what happens under faults, and in all orders, other tests pin.

use std::path::Path;
use std::process::Command;

use dagger_tests::built::programs;

#[test]
fn each_step_of_the_demonstration_of_what_the_cluster_may_decide_holds() {
    let cache = tempfile::Builder::new().prefix("dg").tempdir().expect("a directory");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/demo-membership.sh");
    let output = Command::new(script)
        .arg(programs().expect("built before"))
        .arg(cache.path())
        .env_remove("KEEP")
        .env_remove("DAGGER_DEMO_DIRECTORY")
        .output()
        .expect("bash is there");
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("all of it holds"), "{said}\n{failed}");
    // Nothing of it is left.
    let left = std::fs::read_dir(cache.path()).expect("it is there").count();
    assert_eq!(left, 0, "{said}");
}
