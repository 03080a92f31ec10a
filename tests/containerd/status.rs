// SPDX-License-Identifier: Apache-2.0
//! What the runtime thinks of its network while nobody serves our plugin. A node that is not ready starts no pods, an
//! agent's neither.

use std::fs;
use std::time::{Duration, Instant};

use crate::lab::Lab;
use crate::runtime::Runtime;

pub(crate) fn agent_away(runtime: Runtime) {
    let lab = Lab::new(runtime);
    let calls = lab.dir.join("calls");
    let count = format!("echo \"$CNI_COMMAND\" >>{}", calls.display());
    let asked = || fs::read_to_string(&calls).unwrap_or_default().lines().filter(|c| *c == "STATUS").count();
    lab.wrap("istio-cni", &format!("{count}\nexec $REAL"));

    // Never there, there, and gone.
    poll(&lab, 2);
    let mut agent = lab.node.start_agent();
    poll(&lab, 1);
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(agent.wait());
    poll(&lab, 3);
    let times = asked();
    println!("{runtime:?}: our plugin was asked for its STATUS {times} times");
    match runtime {
        Runtime::V1 => assert_eq!(times, 0, "this release knows no STATUS"),
        Runtime::V2 => {
            assert!(times >= 60, "{times}");
            // What it says counts.
            lab.wrap(
                "istio-cni",
                r#"echo '{"cniVersion": "1.1.0", "code": 50, "msg": "on purpose"}'; exit 1"#,
            );
            let error = lab.ready().unwrap_err();
            assert!(error.contains("on purpose"), "{error}");
        }
    }
}

/// Ask as a kubelet does, but ten times a second.
fn poll(lab: &Lab, seconds: u64) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut times = 0;
    while Instant::now() < end || times < 10 * seconds {
        lab.ready().unwrap();
        times += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
}
