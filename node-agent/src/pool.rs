// SPDX-License-Identifier: Apache-2.0
//! A few plain threads for work that blocks inside system calls, and one that closes descriptors.
//!
//! A rule batch runs inside `send(2)`, hundreds of microseconds long, so it must never run on the thread of the event
//! loop. The queue is bounded: what does not fit is refused at once by [`Job::refuse`], on the caller's thread, and the
//! plugin asks again. A job that panics takes nothing along but itself.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use prometheus_client::metrics::gauge::Gauge;

/// Threads: the kernel serialises the batches of one netns, not those of different ones.
pub(crate) const THREADS: usize = 2;
/// Jobs that may wait. At half a millisecond each, the last one waits a quarter of a second.
pub(crate) const QUEUE: usize = 1024;
/// Things that may wait to be closed; more are closed by the thread that hands them over.
const CLOSING: usize = 1024;

/// One piece of work. Exactly one of its methods is called.
pub(crate) trait Job: Send {
    /// Do it, on a thread of the pool.
    fn run(self: Box<Self>);
    /// The queue is full.
    fn refuse(self: Box<Self>);
}

/// The threads. They live as long as the process.
#[derive(Clone)]
pub(crate) struct Pool {
    queue: Arc<Queue>,
    limit: usize,
}

struct Queue {
    jobs: Mutex<VecDeque<Box<dyn Job>>>,
    arrived: Condvar,
    depth: Gauge,
}

/// Drops things on a thread of its own: closing a netlink socket after a delete waits 10 ms for a grace period of the
/// kernel.
#[derive(Clone)]
pub(crate) struct Closer(SyncSender<Box<dyn Any + Send>>);

impl Pool {
    /// Start `threads` threads with room for `limit` waiting jobs; `depth` shows how many wait.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(crate) fn start(threads: usize, limit: usize, depth: Gauge) -> io::Result<Self> {
        let queue = Arc::new(Queue { jobs: Mutex::default(), arrived: Condvar::new(), depth });
        for number in 0..threads {
            let queue = Arc::clone(&queue);
            thread::Builder::new().name(format!("pool-{number}")).spawn(move || queue.work())?;
        }
        Ok(Self { queue, limit })
    }

    /// Hand over `job`, which is run soon or refused now.
    pub(crate) fn submit(&self, job: Box<dyn Job>) {
        let mut jobs = self.queue.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.len() >= self.limit {
            drop(jobs);
            return job.refuse();
        }
        jobs.push_back(job);
        self.queue.depth.inc();
        drop(jobs);
        self.queue.arrived.notify_one();
    }
}

impl Queue {
    fn work(&self) {
        loop {
            let job = self.next();
            // The panic hook has logged it; dropping the job answers its peer.
            let _ = catch_unwind(AssertUnwindSafe(|| job.run()));
        }
    }

    fn next(&self) -> Box<dyn Job> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = jobs.pop_front() {
                self.depth.dec();
                return job;
            }
            jobs = self.arrived.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Closer {
    /// Start the thread.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, receiver) = sync_channel::<Box<dyn Any + Send>>(CLOSING);
        thread::Builder::new()
            .name("closer".to_owned())
            .spawn(move || receiver.into_iter().for_each(drop))?;
        Ok(Self(sender))
    }

    /// Close whatever `things` owns, later.
    pub(crate) fn close(&self, things: impl Send + 'static) {
        // When the queue is full the error holds it, and it is closed here.
        drop(self.0.try_send(Box::new(things)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    struct Test(Box<dyn FnOnce() + Send>, Sender<&'static str>);

    impl Job for Test {
        fn run(self: Box<Self>) {
            (self.0)();
            self.1.send("run").unwrap();
        }
        fn refuse(self: Box<Self>) {
            self.1.send("refused").unwrap();
        }
    }

    fn job(work: impl FnOnce() + Send + 'static) -> (Box<Test>, Receiver<&'static str>) {
        let (sender, receiver) = channel();
        (Box::new(Test(Box::new(work), sender)), receiver)
    }

    #[test]
    fn a_panic_takes_its_own_job_only() {
        let pool = Pool::start(1, 8, Gauge::default()).unwrap();
        let (bad, told) = job(|| panic!("on purpose"));
        pool.submit(bad);
        assert!(told.recv_timeout(SOON).is_err(), "the job must end without a word");
        let (good, told) = job(|| ());
        pool.submit(good);
        assert_eq!(told.recv_timeout(SOON), Ok("run"));
    }

    #[test]
    fn a_full_queue_refuses_at_once_and_shows_its_depth() {
        let depth = Gauge::default();
        let pool = Pool::start(1, 2, depth.clone()).unwrap();
        let (release, gate) = channel::<()>();
        let (started, start) = channel();
        let (blocker, blocked) = job(move || {
            started.send(()).unwrap();
            gate.recv().unwrap();
        });
        pool.submit(blocker);
        start.recv_timeout(SOON).unwrap();
        let waiting: Vec<_> =
            (0..2).map(|_| job(|| ())).map(|(job, told)| (pool.submit(job), told).1).collect();
        assert_eq!(depth.get(), 2);
        let (over, told) = job(|| ());
        pool.submit(over);
        assert_eq!(told.try_recv(), Ok("refused"));
        release.send(()).unwrap();
        for told in waiting.into_iter().chain([blocked]) {
            assert_eq!(told.recv_timeout(SOON), Ok("run"));
        }
        assert_eq!(depth.get(), 0);
    }

    #[test]
    fn the_closer_drops_on_its_own_thread() {
        struct Told(Sender<thread::ThreadId>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.send(thread::current().id()).unwrap();
            }
        }
        let (sender, receiver) = channel();
        Closer::start().unwrap().close(Told(sender));
        assert_ne!(receiver.recv_timeout(SOON).unwrap(), thread::current().id());
    }
}
