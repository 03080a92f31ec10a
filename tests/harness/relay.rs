// SPDX-License-Identifier: Apache-2.0
//! A transparent proxy for TPROXY mode: takes connections under their own destination and goes on to it under the
//! address of the client, as Envoy does with its `original_src` filter.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use nix::sys::socket::{
    AddressFamily, Backlog, SetSockOpt as _, SockFlag, SockType, SockaddrStorage, bind, connect, listen,
    shutdown, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::netns::Netns;
use crate::packet::Ids;
use crate::probe::PATIENCE;
use crate::server::transparent;

/// Inbound capture.
const PORT: u16 = 15006;
/// Mark of what the proxy sends under a client's address.
const MARK: u32 = 1337;

/// What the proxy saw of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The client.
    pub peer: SocketAddr,
    /// The proxy's side: with TPROXY the client's destination.
    pub local: SocketAddr,
    /// The proxy's side of its connection to the application.
    pub upstream: SocketAddr,
}

/// The proxy; ends with the value, and all its connections with it.
pub struct Relay {
    listeners: Vec<Arc<TcpListener>>,
    threads: Vec<JoinHandle<()>>,
    accepted: Receiver<Accepted>,
}

impl Relay {
    /// Start it in `netns` with sockets that belong to `ids`.
    #[must_use]
    pub fn start(netns: &Netns, ids: Ids) -> Self {
        let (sender, accepted) = channel();
        let (mut listeners, mut threads) = (Vec::new(), Vec::new());
        for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)] {
            let listener = netns.run(move || {
                let fd = bound(SocketAddr::new(any, PORT), ids).unwrap();
                listen(&fd, Backlog::MAXCONN).unwrap();
                Arc::new(TcpListener::from(fd))
            });
            listeners.push(Arc::clone(&listener));
            let sender = sender.clone();
            // A thread is in the netns of the thread that starts it.
            threads.push(netns.run(move || std::thread::spawn(move || serve(&listener, ids, &sender))));
        }
        Self { listeners, threads, accepted }
    }

    /// The next connection that was passed on.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn accepted(&self) -> Accepted {
        self.accepted.recv_timeout(PATIENCE).expect("a connection that the proxy took")
    }

    /// Whether no connection was passed on that [`Relay::accepted`] has not told of.
    #[must_use]
    pub fn idle(&self) -> bool {
        self.accepted.try_recv().is_err()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It ends accept(2) and what copies; both fail for what has ended already.
        for listener in &self.listeners {
            let _ = shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A transparent TCP socket of `ids` at `address`.
fn bound(address: SocketAddr, ids: Ids) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = ids.own(|| socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None))?;
    if !address.is_ipv4() {
        sockopt::Ipv6V6Only.set(&fd, &true)?;
    }
    sockopt::ReuseAddr.set(&fd, &true)?;
    transparent(&fd, family);
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}

fn serve(listener: &TcpListener, ids: Ids, accepted: &Sender<Accepted>) {
    let mut streams = Vec::new();
    std::thread::scope(|scope| {
        while let Ok((client, peer)) = ids.own(|| listener.accept()) {
            // A client whose upstream cannot be reached is hung up on, and sees that.
            let Ok((server, report)) = upstream(&client, peer, ids) else { continue };
            streams.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
            let _ = accepted.send(report);
            let (from_client, to_client) = (client.try_clone().unwrap(), client);
            let (from_server, to_server) = (server.try_clone().unwrap(), server);
            scope.spawn(move || pass_on(from_client, to_server));
            scope.spawn(move || pass_on(from_server, to_client));
        }
        for stream in &streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
}

/// Call whom `client` called, as `peer` but for the port, which would be the client's own connection again.
fn upstream(client: &TcpStream, peer: SocketAddr, ids: Ids) -> io::Result<(TcpStream, Accepted)> {
    let local = client.local_addr()?;
    let fd = bound(SocketAddr::new(peer.ip(), 0), ids)?;
    sockopt::Mark.set(&fd, &MARK)?;
    // Also how long connect(2) may take.
    sockopt::SendTimeout.set(&fd, &TimeVal::microseconds(PATIENCE.as_micros() as i64))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(local))?;
    let server = TcpStream::from(fd);
    let upstream = server.local_addr()?;
    Ok((server, Accepted { peer, local, upstream }))
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    // Either end may hang up.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
