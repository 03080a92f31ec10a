// SPDX-License-Identifier: Apache-2.0
//! Whether this process could answer an ADD, as far as the kernel is concerned, and in which form the kernel takes the
//! rules: the same sockets and questions, in its own netns.
//!
//! Must never change anything.

#[cfg(feature = "fault-injection")]
use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use agent_api::netns::Netlink;
use kernel::route::Route;
use kernel::{Backend as _, Error, Nftables};
use redirect::{Config, Dns, InboundPorts, Ipv6, Mode, OutboundCidrs, OwnerGroups, compile};
use ruleset::{Form, Plan};

use super::failure::Failure;

#[cfg(feature = "fault-injection")]
thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// What the first successful [`run`] found: a running kernel learns nothing new about it.
static FORM: OnceLock<Form> = OnceLock::new();

/// The form in which rules are written; known before the first ADD, since the socket is taken only after [`run`].
pub(crate) fn form() -> Form {
    known_form().unwrap_or(Form::Inet)
}

/// The form, if it is known already.
pub(crate) fn known_form() -> Option<Form> {
    FORM.get().copied()
}

/// Read tables and addresses of the own netns and show the kernel all kinds of rules; some 500 us.
///
/// # Errors
/// [`Failure::SelfTest`].
pub(crate) fn run() -> Result<(), Failure> {
    #[cfg(feature = "fault-injection")]
    RUNNING.set(true);
    let result = questions();
    #[cfg(feature = "fault-injection")]
    RUNNING.set(false);
    result
}

/// The kill points of the kernel back end are those of ADDs: a self-test does not count.
#[cfg(feature = "fault-injection")]
pub(crate) fn fault(point: &'static str) {
    if !RUNNING.get() {
        agent_api::fault::point(point);
    }
}

fn questions() -> Result<(), Failure> {
    let refused = |attempt| move |source| Failure::SelfTest { attempt, source };
    let mut nftables =
        open(Netlink::Netfilter).and_then(Nftables::new).map_err(refused("set up nf_tables"))?;
    match nftables.observe() {
        // A table that somebody else made: the kernel did answer.
        Ok(_) | Err(Error::Decode { .. }) => {}
        Err(error) => return Err(refused("read the rules")(error)),
    }
    let form =
        accepted_form(|plan| nftables.probe(&plan.tables)).map_err(refused("show the kernel all rules"))?;
    if FORM.set(form).is_ok() {
        tracing::info!(?form, "the kernel takes the rules");
    }
    let mut route = open(Netlink::Route).and_then(Route::new).map_err(refused("set up routing"))?;
    route.addresses().map_err(refused("read the addresses"))?;
    Ok(())
}

/// The first form in which `probe` takes everything.
///
/// # Errors
/// What it said of the preferred form, when it takes none.
fn accepted_form(mut probe: impl FnMut(&Plan) -> Result<(), Error>) -> Result<Form, Error> {
    let mut first = None;
    for form in Form::ALL {
        match everything().into_iter().try_for_each(|plan| probe(&plan.in_form(form))) {
            Ok(()) => return Ok(form),
            Err(error) if error.transient() => return Err(error),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.expect("there is at least one form"))
}

/// Plans with every kind of set, match and statement that settings can lead to.
fn everything() -> [Plan; 2] {
    let name = |text| ruleset::IfName::parse(text).expect("the names below are names");
    let redirect = Config {
        ipv6: Ipv6::Capture,
        inbound: InboundPorts::Only([80, 81].into()),
        outbound: OutboundCidrs::Only(
            redirect::annotations::parse_cidrs("10.0.0.0/9,192.0.2.1/32,2001:db8::/33,2001:db8:ffff::1/128")
                .expect("these are prefixes"),
        ),
        outbound_ports: [80, 81].into(),
        outbound_ports_exclude: [90, 91].into(),
        exclude_interfaces: ["net1", "net2"].map(name).into(),
        reroute_interfaces: ["vm1"].map(name).into(),
        owner_groups: OwnerGroups::Only([1, 2].into()),
        ..Config::default()
    };
    let tproxy = Config {
        ipv6: Ipv6::Capture,
        mode: Mode::Tproxy,
        dns: Dns::All,
        drop_invalid: true,
        ..Config::default()
    };
    [compile(&redirect), compile(&tproxy)]
}

fn open(kind: Netlink) -> Result<OwnedFd, Error> {
    kind.open().map_err(|errno| Error::Setup { errno })
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use ruleset::Family;

    use super::*;

    fn refusal(what: &str, errno: Errno) -> Error {
        Error::Refused { what: what.to_owned(), errno, extack: None }
    }

    #[test]
    fn an_older_kernel_gets_a_table_for_each_family() {
        let mut seen = Vec::new();
        let form = accepted_form(|plan| {
            seen.extend(plan.tables.iter().map(|table| table.family));
            match plan.tables[0].family {
                Family::Inet => Err(refusal("add chain inet waylay nat_output", Errno::EOPNOTSUPP)),
                _ => Ok(()),
            }
        });
        assert_eq!(form.ok(), Some(Form::PerFamily));
        assert_eq!(seen, [Family::Inet, Family::Ip, Family::Ip6, Family::Ip, Family::Ip6]);
    }

    #[test]
    fn a_kernel_that_takes_neither_is_told_by_what_it_lacks_in_the_preferred_form() {
        let error = accepted_form(|plan| Err(refusal(&plan.tables[0].family.to_string(), Errno::ENOENT)));
        assert!(error.is_err_and(|error| error.to_string().starts_with("inet")));
    }

    #[test]
    fn a_busy_kernel_is_asked_again_and_not_taken_for_an_old_one() {
        let error = accepted_form(|_| Err(refusal("x", Errno::ENOMEM)));
        assert!(error.is_err_and(|error| error.transient()));
    }
}
