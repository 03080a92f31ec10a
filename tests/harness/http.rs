// SPDX-License-Identifier: Apache-2.0
//! As much HTTP as it takes: a server that says who calls, and a client.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::sys::socket::{
    AddressFamily, SetSockOpt as _, SockFlag, SockType, SockaddrStorage, connect, shutdown, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::netns::Netns;
use crate::packet::Ids;
use crate::probe::PATIENCE;

/// A server whose answers name itself and the address that called; ends with the value.
pub struct HttpServer {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Listen at `address` in `netns`, with `name` in the answers.
    #[must_use]
    pub fn start(netns: &Netns, name: &'static str, address: SocketAddr) -> Self {
        let listener = Arc::new(netns.run(move || {
            TcpListener::bind(address).unwrap_or_else(|error| panic!("bind {address}: {error}"))
        }));
        let accepting = Arc::clone(&listener);
        let thread = std::thread::spawn(move || {
            while let Ok((stream, peer)) = accepting.accept() {
                // Whoever hangs up sees that.
                let _ = answer(stream, &format!("{name} called from {}", peer.ip()));
            }
        });
        Self { listener, thread: Some(thread) }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        // It ends accept(2).
        let _ = shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(stream: TcpStream, body: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
    }
    let length = body.len();
    write!(stream.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// What `GET /` of `ids` in `netns` at `address` brings: status line, headers and body.
///
/// # Errors
/// Those of the socket.
pub fn get(netns: &Netns, ids: Ids, address: SocketAddr) -> io::Result<String> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = netns.run(move || ids.own(|| socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)))?;
    let timeout = TimeVal::microseconds(PATIENCE.as_micros() as i64);
    sockopt::SendTimeout.set(&fd, &timeout)?;
    sockopt::ReceiveTimeout.set(&fd, &timeout)?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    let mut stream = TcpStream::from(fd);
    write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    io::read_to_string(stream)
}
