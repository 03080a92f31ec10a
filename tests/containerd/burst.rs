// SPDX-License-Identifier: Apache-2.0
//! Many pods at once. containerd runs its own plugin for `lo` beside the pods' network, and that one refuses an `lo` that
//! has `::6` already. Which of the two is the later one is luck; here it is always that plugin.

use std::sync::atomic::{AtomicUsize, Ordering};

use harness::node::Programmed;

use crate::lab::{Lab, Source};
use crate::load::mesh_pod;
use crate::runtime::Runtime;

/// More than there are processors, so that the two plugins interrupt each other.
const AT_ONCE: usize = 4;

pub(crate) fn lo(runtime: Runtime) {
    let pods = std::env::var("WAYLAY_PODS").map_or(40, |text| text.parse().unwrap());
    let lab = Lab::new(runtime);
    hold_up_loopback(&lab);
    let _agent = lab.node.start_agent();
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut failed = Vec::new();
        while let Some(n) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < pods) {
            failed.extend(start(&lab, n).err());
        }
        failed
    };
    let failed: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    println!("{} of {pods} pods failed, {AT_ONCE} at once", failed.len());
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Let the runtime's plugin wait until ours has begun, and then for up to 50 ms more.
fn hold_up_loopback(lab: &Lab) {
    let begun = format!("{}/begun-$CNI_CONTAINERID", lab.dir.display());
    lab.wrap("istio-cni", &format!(": >{begun}\nexec $REAL"));
    lab.wrap(
        "loopback",
        &format!(
            "if [ $CNI_COMMAND = ADD ]; then\n\
             n=0; until [ -e {begun} ] || [ $n = 200 ]; do sleep 0.01; n=$((n + 1)); done\n\
             sleep 0.0$(($$ % 6))\n\
             fi\n\
             exec $REAL"
        ),
    );
}

fn start(lab: &Lab, n: usize) -> Result<(), String> {
    let pod = mesh_pod(&format!("web-{n}"), Source::Runtime);
    lab.write_manifest(&pod);
    let id = lab.run(&pod)?;
    let (sandbox, _) = lab.look_into(&pod, &id)?;
    if sandbox.programmed() != Programmed::Complete || !sandbox.has_passthrough() {
        return Err(format!("{}: not redirected", pod.name));
    }
    lab.remove(&id)
}
