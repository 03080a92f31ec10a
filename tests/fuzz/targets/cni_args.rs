// SPDX-License-Identifier: Apache-2.0
//! `CNI_ARGS`, and the other variables with the same text. Whatever comes: no panic, an error has code 4 and a text of one
//! line, and what was read reads the same when it is written again.
#![no_main]

use cni::{Args, Invocation};
use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    // As the plugin does it.
    let text = String::from_utf8_lossy(data);
    for command in ["ADD", "DEL", "GC", &*text] {
        let lookup = |name: &str| Some(if name == "CNI_COMMAND" { command } else { &*text }.to_owned());
        match Invocation::read(&lookup) {
            Ok(Some(call)) => assert_eq!(call.verb.as_str(), command),
            Ok(None) => assert!(text.is_empty()),
            Err(error) => in_one_line(&error),
        }
    }
    let args = match Args::parse(&text) {
        Ok(args) => args,
        Err(error) => {
            in_one_line(&error);
            return waylay_fuzz::keep(false);
        }
    };
    let Args { pod_name, pod_namespace, pod_uid, infra_container_id } = &args;
    let again = format!(
        "K8S_POD_UID={pod_uid};K8S_POD_INFRA_CONTAINER_ID={infra_container_id};K8S_POD_NAME={pod_name};\
         K8S_POD_NAMESPACE={pod_namespace}"
    );
    assert_eq!(Args::parse(&again).as_ref(), Ok(&args), "{again:?}");
    let long = |value: &String| value.len() > 20;
    waylay_fuzz::seeded_bug(&[long(pod_name), long(pod_uid)]);
    waylay_fuzz::keep(!pod_name.is_empty())
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    waylay_fuzz::mutate_text(data, size, max_size, seed)
});

fn in_one_line(error: &cni::Error) {
    assert_eq!(error.code(), 4);
    assert!(error.msg().len() < 1024 && !error.msg().contains(char::is_control), "{error}");
}
