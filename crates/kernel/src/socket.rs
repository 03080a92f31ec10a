// SPDX-License-Identifier: Apache-2.0
//! Sending to and receiving from the kernel over one netlink socket (netlink(7)).
//!
//! Owns sequence numbers, acknowledgements, deadlines, buffer sizes and interrupted dumps. Nothing else in this crate
//! reads or writes a socket; nothing in here knows what a message means.

use std::hash::{BuildHasher as _, RandomState};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, NetlinkAddr, connect, recvmsg, send, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::attr::{Attrs, Malformed, Message, Messages, read_str};
use crate::error::Error;
use crate::fault::{Points, point};
use crate::uapi::{
    NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_HDRLEN, NLMSGERR_ATTR_MSG,
    NLMSGERR_ATTR_OFFS,
};

/// Longest wait for an answer. The kernel works inside `send(2)`, so that only a bug keeps us waiting.
const RECEIVE_SECONDS: i64 = 2;
/// No datagram of a dump is larger (`netlink_dump` allocates at most this), and we make no larger single answer.
const RECEIVE_BUFFER: usize = 32 * 1024;
/// Room for refusals: each operation of a batch may get one, of some 800 bytes in the kernel's accounting.
const RECEIVE_QUEUE: usize = 1024 * 1024;
/// What every socket can send without asking; the default of `net.core.wmem_default` is 208 KiB.
const SEND_UNASKED: usize = 64 * 1024;
/// A dump that is interrupted this often meets somebody who changes tables in a loop.
pub(crate) const ATTEMPTS: usize = 5;

/// One netlink socket.
pub(crate) struct Socket {
    fd: OwnedFd,
    seq: u32,
    buffer: Vec<u8>,
}

/// What is being done, for errors and fault tests.
pub(crate) struct Operation {
    pub(crate) what: &'static str,
    pub(crate) points: &'static Points,
}

/// The kernel said no.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Sequence number of the message that it refuses.
    pub(crate) seq: u32,
    pub(crate) errno: Errno,
    pub(crate) extack: Option<String>,
    /// Where in the refused message the attribute at fault begins, if the kernel says so.
    pub(crate) offset: Option<u32>,
}

/// How one receive ended.
enum Received {
    Bytes(usize),
    /// Nothing is queued; only without waiting.
    Empty,
    /// The kernel dropped an answer for want of queue space.
    Overrun,
}

impl Socket {
    /// Take over `fd`, which somebody else may have used before.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, Error> {
        let setup = |errno| Error::Setup { errno };
        // Without these an error repeats the whole request and has no explanation. Kernels before 4.12 lack them.
        set_netlink_flag(&fd, libc::NETLINK_CAP_ACK).map_err(setup)?;
        set_netlink_flag(&fd, libc::NETLINK_EXT_ACK).map_err(setup)?;
        // To the kernel, whomever the last owner talked to.
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(setup)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(RECEIVE_SECONDS)).map_err(setup)?;
        // Best effort: needs CAP_NET_ADMIN, and the default does for all but hundreds of refusals at once.
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_QUEUE);
        // A start that no predecessor on this socket can have used: an agent may die between sending a batch and
        // reading its answer, and the plugin then gives the same socket to the next agent.
        let random = RandomState::new().hash_one(fd.as_raw_fd());
        let seq = u32::try_from(random >> 34).unwrap_or_default();
        let mut socket = Self { fd, seq, buffer: vec![0; RECEIVE_BUFFER] };
        while !matches!(socket.receive_once(MsgFlags::MSG_DONTWAIT).map_err(setup)?, Received::Empty) {}
        Ok(socket)
    }

    /// Sequence numbers for `count` messages: the first of them.
    pub(crate) fn reserve(&mut self, count: u32) -> u32 {
        let first = self.seq;
        self.seq = self.seq.wrapping_add(count);
        first
    }

    /// Send a batch whose first message has sequence number `first` and whose operation `last` asks for an
    /// acknowledgement, and say how it ended. The inner error names the lowest refused message: the others of a failed
    /// batch are mostly its consequences.
    pub(crate) fn batch(
        &mut self,
        operation: &Operation,
        bytes: &[u8],
        first: u32,
        last: u32,
    ) -> Result<Result<(), Refusal>, Error> {
        self.make_room(bytes.len());
        self.send(operation, bytes)?;
        let mut verdict = Verdict { first, last, acknowledged: false, lowest: None };
        let mut overrun = false;
        let mut flags = MsgFlags::empty();
        // The batch has run when send returns and all answers are queued: wait for one, then drain.
        loop {
            match self.receive(operation, flags)? {
                Received::Empty => break,
                Received::Overrun => overrun = true,
                Received::Bytes(len) => {
                    verdict.read(&self.buffer[..len]).map_err(|m| malformed(operation, m))?
                }
            }
            flags = MsgFlags::MSG_DONTWAIT;
        }
        verdict.end(operation, overrun)
    }

    /// Send one request and hand each answer to `each`, until the dump is complete or the request is acknowledged.
    ///
    /// `build` makes the request for a sequence number. An interrupted dump is repeated.
    pub(crate) fn exchange<T>(
        &mut self,
        operation: &Operation,
        build: impl Fn(u32) -> Vec<u8>,
        mut each: impl FnMut(Message<'_>) -> T,
    ) -> Result<Result<Vec<T>, Refusal>, Error> {
        for _ in 0..ATTEMPTS {
            let seq = self.reserve(1);
            self.send(operation, &build(seq))?;
            let mut answers = Vec::new();
            match self.answers(operation, seq, |m| answers.push(each(m)))? {
                End::Complete => return Ok(Ok(answers)),
                End::Refused(refusal) => return Ok(Err(refusal)),
                End::Interrupted => {}
            }
        }
        Err(Error::Interrupted { what: operation.what })
    }

    fn answers(
        &mut self,
        operation: &Operation,
        seq: u32,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<End, Error> {
        let mut interrupted = false;
        loop {
            let len = match self.receive(operation, MsgFlags::empty())? {
                Received::Bytes(len) => len,
                Received::Empty => continue,
                Received::Overrun => {
                    return Err(Error::Recv { what: operation.what, errno: Errno::ENOBUFS });
                }
            };
            for message in Messages(&self.buffer[..len]) {
                let message = message.map_err(|m| malformed(operation, m))?;
                if message.seq != seq {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                if !matches!(message.kind, NLMSG_ERROR | NLMSG_DONE) {
                    each(message);
                    continue;
                }
                return Ok(match read_error(message).map_err(|m| malformed(operation, m))? {
                    Some(refusal) => End::Refused(refusal),
                    None if interrupted => End::Interrupted,
                    None => End::Complete,
                });
            }
        }
    }

    fn send(&mut self, operation: &Operation, bytes: &[u8]) -> Result<(), Error> {
        point(operation.points.send[0]);
        // Without an address: with one, the kernel does not look at who opened the socket (`netlink_ns_capable`), and
        // a pod's process without CAP_NET_ADMIN could have us act for it.
        loop {
            match send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Send { what: operation.what, errno }),
            }
        }
        point(operation.points.send[1]);
        Ok(())
    }

    fn receive(&mut self, operation: &Operation, flags: MsgFlags) -> Result<Received, Error> {
        point(operation.points.receive[0]);
        let received = self.receive_once(flags).map_err(|errno| match errno {
            Errno::EAGAIN => Error::Timeout { what: operation.what },
            errno => Error::Recv { what: operation.what, errno },
        })?;
        point(operation.points.receive[1]);
        Ok(received)
    }

    fn receive_once(&mut self, flags: MsgFlags) -> Result<Received, Errno> {
        loop {
            let mut parts = [IoSliceMut::new(&mut self.buffer)];
            let received = recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut parts, None, flags);
            match received {
                // A datagram from another process is none of ours, however well it guessed.
                Ok(got) if got.address.is_none_or(|from| from.pid() != 0) => {
                    if got.bytes == 0 {
                        return Err(Errno::ECONNRESET);
                    }
                }
                Ok(got) if got.flags.contains(MsgFlags::MSG_TRUNC) => return Err(Errno::EMSGSIZE),
                Ok(got) => return Ok(Received::Bytes(got.bytes)),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Ok(Received::Overrun),
                Err(Errno::EAGAIN) if flags.contains(MsgFlags::MSG_DONTWAIT) => return Ok(Received::Empty),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// A datagram larger than the send buffer is refused with EMSGSIZE.
    fn make_room(&self, bytes: usize) {
        if bytes > SEND_UNASKED && setsockopt(&self.fd, sockopt::SndBufForce, &bytes).is_err() {
            // Without CAP_NET_ADMIN over the socket's netns up to net.core.wmem_max; send then says the rest.
            let _ = setsockopt(&self.fd, sockopt::SndBuf, &bytes);
        }
    }
}

/// How the answers to one request ended.
enum End {
    Complete,
    Interrupted,
    Refused(Refusal),
}

/// What the answers to a batch say so far.
struct Verdict {
    first: u32,
    last: u32,
    acknowledged: bool,
    lowest: Option<Refusal>,
}

impl Verdict {
    /// What the answers mean; with `overrun`, some were lost. The last operation of a refused batch may still be
    /// acknowledged, so that an acknowledgement proves nothing once a refusal may have been lost.
    fn end(self, operation: &Operation, overrun: bool) -> Result<Result<(), Refusal>, Error> {
        match self {
            Self { lowest: Some(refusal), .. } => Ok(Err(refusal)),
            _ if overrun => Err(Error::Recv { what: operation.what, errno: Errno::ENOBUFS }),
            Self { acknowledged: true, .. } => Ok(Ok(())),
            Self { .. } => Err(Error::NoAck { what: operation.what }),
        }
    }

    fn read(&mut self, datagram: &[u8]) -> Result<(), Malformed> {
        for message in Messages(datagram) {
            let message = message?;
            let position = message.seq.wrapping_sub(self.first);
            if message.kind != NLMSG_ERROR || position > self.last.wrapping_sub(self.first) {
                continue;
            }
            match read_error(message)? {
                None => self.acknowledged |= message.seq == self.last,
                Some(refusal) => {
                    let lower =
                        self.lowest.as_ref().is_none_or(|l| position < l.seq.wrapping_sub(self.first));
                    if lower {
                        self.lowest = Some(refusal);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The refusal in an `NLMSG_ERROR` or `NLMSG_DONE`, or nothing when it says success.
fn read_error(message: Message<'_>) -> Result<Option<Refusal>, Malformed> {
    let (code, rest) = message.payload.split_first_chunk::<4>().ok_or(Malformed("error code"))?;
    let code = i32::from_ne_bytes(*code);
    if code == 0 {
        return Ok(None);
    }
    let (mut extack, mut offset) = (None, None);
    if message.flags & NLM_F_ACK_TLVS != 0 {
        let request = match message.kind {
            NLMSG_DONE => 0,
            _ if message.flags & NLM_F_CAPPED != 0 => NLMSG_HDRLEN,
            // The whole request is repeated; its length is in its header.
            _ => {
                rest.first_chunk::<4>().map_or(0, |len| u32::from_ne_bytes(*len) as usize).next_multiple_of(4)
            }
        };
        for attribute in Attrs(rest.get(request..).unwrap_or(&[])) {
            let (kind, payload) = attribute?;
            match kind {
                NLMSGERR_ATTR_MSG => extack = Some(read_str(payload)?.to_owned()),
                NLMSGERR_ATTR_OFFS => offset = payload.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)),
                _ => {}
            }
        }
    }
    Ok(Some(Refusal { seq: message.seq, errno: Errno::from_raw(code.wrapping_neg()), extack, offset }))
}

fn malformed(operation: &Operation, malformed: Malformed) -> Error {
    Error::Decode { object: format!("the answer to {}", operation.what), reason: malformed.0 }
}

#[allow(unsafe_code, reason = "nix has no type for these options")]
fn set_netlink_flag(fd: &OwnedFd, option: libc::c_int) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and length describe `on`, which outlives the call; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

/// For the fuzzer: the answers to a batch, as any bytes.
#[doc(hidden)]
pub fn decode_answers(bytes: &[u8]) {
    let mut verdict = Verdict { first: 0, last: 7, acknowledged: false, lowest: None };
    let _ = verdict.read(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(seq: u32, errno: i32, text: Option<&str>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let tlv = text.map(|text| {
            let mut w = crate::attr::Writer::default();
            w.put_str(NLMSGERR_ATTR_MSG, text);
            w.into_bytes()
        });
        let flags = NLM_F_CAPPED | if tlv.is_some() { NLM_F_ACK_TLVS } else { 0 };
        let tlv = tlv.unwrap_or_default();
        bytes.extend_from_slice(&u32::try_from(36 + tlv.len()).unwrap().to_ne_bytes());
        bytes.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&seq.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(-errno).to_ne_bytes());
        bytes.extend_from_slice(&[0; 16]);
        bytes.extend_from_slice(&tlv);
        bytes
    }

    fn verdict(datagrams: &[Vec<u8>]) -> Verdict {
        // The range wraps around on purpose.
        let mut verdict = Verdict { first: u32::MAX, last: 5, acknowledged: false, lowest: None };
        for datagram in datagrams {
            verdict.read(datagram).unwrap();
        }
        verdict
    }

    #[test]
    fn the_lowest_refused_message_is_kept_in_any_order_of_answers() {
        let found = verdict(&[
            answer(3, libc::EINVAL, None),
            answer(u32::MAX, libc::ENOENT, Some("no such table")),
            answer(2, libc::EEXIST, None),
            answer(5, 0, None),
        ]);
        let expected = Refusal {
            seq: u32::MAX,
            errno: Errno::ENOENT,
            extack: Some(String::from("no such table")),
            offset: None,
        };
        assert_eq!(found.lowest, Some(expected));
    }

    #[test]
    fn only_the_last_operations_acknowledgement_counts() {
        assert!(
            !verdict(&[answer(4, 0, None), answer(6, 0, None), answer(77, libc::EPERM, None)]).acknowledged
        );
        let done = verdict(&[answer(5, 0, None)]);
        assert!(done.acknowledged && done.lowest.is_none());
    }

    #[test]
    fn an_acknowledgement_proves_nothing_when_a_refusal_may_have_been_lost() {
        let operation = Operation { what: "test", points: &crate::fault::NF_BATCH };
        let acknowledged = || Verdict { first: 1, last: 2, acknowledged: true, lowest: None };
        assert!(matches!(acknowledged().end(&operation, false), Ok(Ok(()))));
        assert!(acknowledged().end(&operation, true).is_err_and(|error| error.transient()));
    }
}
