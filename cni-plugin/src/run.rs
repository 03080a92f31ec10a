// SPDX-License-Identifier: Apache-2.0
//! One call over any environment, reader and writers, so that it can be tested without a process. Owns the connection of
//! the wire format (`cni`) with the verbs; decides nothing.

use std::io::{Read, Write};

use cni::{Call, Error, Plugin};

use crate::verbs;

/// Serve one call; the exit status.
pub(crate) fn run(
    lookup: &dyn Fn(&str) -> Option<String>,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> u8 {
    let mut about = Vec::new();
    let status = cni::run(lookup, stdin, stdout, &mut about, &mut IstioCni { lookup, stderr });
    // Empty unless the plugin was started without a command; a closed stderr is no failure.
    let _ = stderr.write_all(&about);
    status
}

struct IstioCni<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    stderr: &'a mut dyn Write,
}

impl Plugin for IstioCni<'_> {
    fn about(&self) -> String {
        format!("CNI plugin istio-cni {} (Waylay)", env!("CARGO_PKG_VERSION"))
    }

    fn add(&mut self, call: &Call<'_>) -> Result<(), Error> {
        verbs::add(call, self.lookup, self.stderr)
    }

    fn del(&mut self, call: &Call<'_>) {
        verbs::del(call);
    }

    fn check(&mut self, call: &Call<'_>) -> Result<(), Error> {
        verbs::check(call, self.lookup, self.stderr)
    }

    fn gc(&mut self, call: &Call<'_>) -> Result<(), Error> {
        verbs::gc(call)
    }

    fn status(&mut self, _call: &Call<'_>) -> Result<(), Error> {
        verbs::status()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(variables: &[(&str, &str)], stdin: &str) -> (u8, String, String) {
        let lookup = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| String::from(*value))
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = run(&lookup, &mut stdin.as_bytes(), &mut stdout, &mut stderr);
        (status, String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    #[test]
    fn without_a_command_the_text_goes_to_stderr_only() {
        let (status, stdout, stderr) = serve(&[], "");
        assert_eq!((status, stdout.as_str()), (0, ""));
        assert!(stderr.starts_with("CNI plugin istio-cni ") && stderr.contains("1.1.0"), "{stderr}");
    }

    #[test]
    fn a_pass_prints_its_result_on_stdout_and_a_line_on_stderr() {
        let variables = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/nonexistent/netns"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        let config = |level: &str| {
            format!(
                r#"{{"name":"n","cniVersion":"1.0.0","cni_agent_run_dir":"/nonexistent","plugin_log_level":"{level}"}}"#
            )
        };
        let (status, stdout, stderr) = serve(&variables, &config("info"));
        assert_eq!((status, stdout.as_str()), (0, "{\"cniVersion\":\"1.0.0\"}\n"));
        assert_eq!(stderr, "istio-cni: info: pass without redirection: not_kubernetes (container c1)\n");
        assert_eq!(serve(&variables, &config("warn")).2, "");
    }
}
