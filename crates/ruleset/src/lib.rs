// SPDX-License-Identifier: Apache-2.0
//! nf_tables rule sets as data.
//!
//! Owns the intermediate representation between the redirect compiler and the kernel: the [`Table`] with its sets,
//! chains and rules, what makes one legal ([`validate`]), its spelling in nft syntax ([`render`]), what it does with a
//! packet ([`evaluate`]) and the [`Plan`], everything that one pod's netns is to hold. Pure: no I/O, no clock, no logging.
//!
//! It must never know annotations, pods or netlink bytes.

pub mod evaluate;
mod form;
mod model;
mod name;
mod plan;
mod range;
mod text;
mod validate;

pub use form::Form;
pub use model::{
    BaseChain, Chain, ChainType, CtStates, Elements, Family, Field, Hook, IpFamily, L4, Match, Op, Operand,
    Rule, Set, Statement, Table,
};
pub use name::{IfName, IfNameError};
pub use plan::{Fingerprint, FingerprintError, Plan, PolicyRoute};
pub use range::{Prefix, PrefixError, Range, RangeSet};
pub use text::render;
pub use validate::{ValidateError, validate};
