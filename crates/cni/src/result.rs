// SPDX-License-Identifier: Apache-2.0
//! The result of an ADD. Owns what is printed; never adds, drops or rewrites anything that an earlier plugin reported.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::error::{Code, Error};
use crate::text::shown;
use crate::version::{Family, Version};

/// What an ADD under `version` prints when it succeeds: `prev` byte for byte, or a result with nothing in it.
///
/// `prev` must be something that the runtime can read afterwards: an object whose `cniVersion` is of the configuration's
/// format family, and whose lists are lists. What is inside the lists is left to those who wrote it.
///
/// # Errors
/// Code 6: `prev` is not such an object.
pub fn printed(version: Version, prev: Option<&str>) -> Result<String, Error> {
    match prev {
        Some(text) => {
            check(version, text)?;
            Ok(text.into())
        }
        // Results of 0.3.0 to 0.4.0 always carry `dns`.
        None if version.family() == Family::IpsWithVersion => {
            Ok(format!("{{\"cniVersion\":\"{}\",\"dns\":{{}}}}", version.as_str()))
        }
        None => Ok(format!("{{\"cniVersion\":\"{}\"}}", version.as_str())),
    }
}

/// The addresses that `prev`, a result of any version, gives the sandbox; those of the host's interfaces are not among
/// them. What cannot be read is left out: it is the business of those who wrote it.
#[must_use]
pub fn addresses(prev: &str) -> Vec<IpAddr> {
    let Ok(result) = serde_json::from_str::<Addressed<'_>>(prev) else { return Vec::new() };
    let on_host = |ip: &Ip<'_>| {
        let index = ip.interface.and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| result.interfaces.get(index)).is_some_and(|i| i.sandbox.is_empty())
    };
    let listed = result.ips.iter().filter(|ip| !on_host(ip)).map(|ip| &ip.address);
    let oldest = [&result.ip4, &result.ip6].into_iter().flatten().map(|ip| &ip.ip);
    let address = |text: &Cow<'_, str>| text.split('/').next().and_then(|address| address.parse().ok());
    listed.chain(oldest).filter_map(address).take(ADDRESSES).collect()
}

/// A pod has a handful.
const ADDRESSES: usize = 64;

#[derive(Deserialize)]
struct Addressed<'a> {
    #[serde(borrow, default, deserialize_with = "or_null")]
    ips: Vec<Ip<'a>>,
    #[serde(borrow, default, deserialize_with = "or_null")]
    interfaces: Vec<Interface<'a>>,
    #[serde(borrow, default)]
    ip4: Option<OldIp<'a>>,
    #[serde(borrow, default)]
    ip6: Option<OldIp<'a>>,
}

#[derive(Deserialize)]
struct Ip<'a> {
    #[serde(borrow, default)]
    address: Cow<'a, str>,
    #[serde(default)]
    interface: Option<i64>,
}

#[derive(Deserialize)]
struct Interface<'a> {
    #[serde(borrow, default)]
    sandbox: Cow<'a, str>,
}

/// Of results before 0.3.0.
#[derive(Deserialize)]
struct OldIp<'a> {
    #[serde(borrow, default)]
    ip: Cow<'a, str>,
}

fn or_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn check(version: Version, text: &str) -> Result<(), Error> {
    let keys: BTreeMap<String, &RawValue> =
        serde_json::from_str(text).map_err(|_| undecodable("is", text, "an object"))?;
    let found = keys.get("cniVersion").map_or("", |raw| raw.get());
    let spelling: String = serde_json::from_str(found).unwrap_or_default();
    let family = Version::parse(&spelling).map(Version::family);
    // The two oldest formats had no version in the result.
    let unversioned = found.is_empty() && version.family() == Family::Ip4Ip6;
    if !unversioned && family != Some(version.family()) {
        let form = format!("a version with the result format of cniVersion \"{}\"", version.as_str());
        let found = if found.is_empty() { "that is missing" } else { found };
        return Err(undecodable("has cniVersion", found, &form));
    }
    for (key, open, form) in [
        ("interfaces", '[', "an array"),
        ("ips", '[', "an array"),
        ("routes", '[', "an array"),
        ("ip4", '{', "an object"),
        ("ip6", '{', "an object"),
        ("dns", '{', "an object"),
    ] {
        if let Some(value) = keys.get(key).map(|raw| raw.get()).filter(|text| *text != "null")
            && !value.starts_with(open)
        {
            return Err(undecodable(&format!("has {key}"), value, form));
        }
    }
    Ok(())
}

fn undecodable(what: &str, value: &str, form: &str) -> Error {
    Error::new(
        Code::Decode,
        &format!(
            "prevResult {what} {}: must be {form}; see the plugin before istio-cni in the list",
            shown(value)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_prev_result_every_version_has_its_empty_result() {
        for (version, spelling) in Version::ALL {
            let dns = if ["0.3.0", "0.3.1", "0.4.0"].contains(&spelling) { r#","dns":{}"# } else { "" };
            assert_eq!(printed(version, None), Ok(format!(r#"{{"cniVersion":"{spelling}"{dns}}}"#)));
        }
    }

    #[test]
    fn what_was_received_is_printed_byte_for_byte() {
        for text in [
            r#"{"cniVersion":"1.0.0"}"#,
            "{ \"cniVersion\":\"1.1.0\",\n \"interfaces\":[{\"mtu\":1500,\"new\":1.0}], \"ips\":null, \"dns\":{ } }",
        ] {
            assert_eq!(printed(Version::V1_1_0, Some(text)), Ok(text.to_owned()));
        }
        let old = r#"{"ip4":{"ip":"10.0.0.1/24"}}"#;
        assert_eq!(printed(Version::V0_1_0, Some(old)), Ok(old.to_owned()));
    }

    #[test]
    fn another_version_of_the_same_format_is_accepted() {
        assert!(printed(Version::V0_3_1, Some(r#"{"cniVersion":"0.4.0"}"#)).is_ok());
        assert!(printed(Version::V0_2_0, Some(r#"{"cniVersion":"0.1.0"}"#)).is_ok());
    }

    #[test]
    fn each_undecodable_result_has_code_6_and_its_text() {
        let see = "see the plugin before istio-cni in the list";
        let format = "must be a version with the result format of cniVersion \"1.0.0\"";
        let cases = [
            ("7", format!("prevResult is 7: must be an object; {see}")),
            ("[]", format!("prevResult is []: must be an object; {see}")),
            ("{}", format!("prevResult has cniVersion that is missing: {format}; {see}")),
            (r#"{"cniVersion":"0.4.0"}"#, format!("prevResult has cniVersion \"0.4.0\": {format}; {see}")),
            (r#"{"cniVersion":"9.9.9"}"#, format!("prevResult has cniVersion \"9.9.9\": {format}; {see}")),
            (r#"{"cniVersion":1}"#, format!("prevResult has cniVersion 1: {format}; {see}")),
            (
                r#"{"cniVersion":"1.0.0","ips":{}}"#,
                format!("prevResult has ips {{}}: must be an array; {see}"),
            ),
            (
                r#"{"cniVersion":"1.0.0","routes":1}"#,
                format!("prevResult has routes 1: must be an array; {see}"),
            ),
            (
                r#"{"cniVersion":"1.0.0","interfaces":"x"}"#,
                format!("prevResult has interfaces \"x\": must be an array; {see}"),
            ),
            (
                r#"{"cniVersion":"1.0.0","dns":[]}"#,
                format!("prevResult has dns []: must be an object; {see}"),
            ),
        ];
        for (text, message) in cases {
            let error = printed(Version::V1_0_0, Some(text)).unwrap_err();
            assert_eq!((error.code(), error.msg()), (6, message.as_str()), "{text}");
        }
        assert_eq!(
            printed(Version::V0_2_0, Some(r#"{"ip4":[]}"#)).unwrap_err().msg(),
            format!("prevResult has ip4 []: must be an object; {see}")
        );
    }

    #[test]
    fn the_sandboxs_addresses_are_read_of_every_version_and_the_hosts_are_not() {
        let found = |text| addresses(text).iter().map(ToString::to_string).collect::<Vec<_>>();
        let bridge = r#"{"interfaces":[{"name":"cni0"},{"name":"veth1","sandbox":""},{"name":"eth0","sandbox":"/n"}],
            "ips":[{"address":"10.0.0.5/24","interface":2,"gateway":"10.0.0.1"},{"address":"10.0.0.1/24","interface":0},
                   {"version":"6","address":"fd00::5/64","interface":2},{"address":"10.1.0.5/32"},
                   {"address":"10.2.0.5/24","interface":9},{"address":"10.2.0.6/24","interface":-1}]}"#;
        assert_eq!(found(bridge), ["10.0.0.5", "fd00::5", "10.1.0.5", "10.2.0.5", "10.2.0.6"]);
        assert_eq!(
            found(r#"{"ip4":{"ip":"10.0.0.1/24"},"ip6":{"ip":"fd00::1/64"}}"#),
            ["10.0.0.1", "fd00::1"]
        );
        assert_eq!(found(r#"{"ips":[{"address":"host"},{"address":"10.0.0.1"},{}]}"#), ["10.0.0.1"]);
        for nothing in
            ["{}", "7", r#"{"ips":null}"#, r#"{"ips":[],"interfaces":null,"ip4":null}"#, r#"{"ips":[7]}"#]
        {
            assert!(found(nothing).is_empty(), "{nothing}");
        }
    }
}
