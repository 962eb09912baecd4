//! [`Team`]: the threads of one rayon pool working through the parallel steps of one inference.
//!
//! An inference is a hundred short parallel steps. Forking and joining at each costs more than many of them take,
//! so a team forks once: one thread leads, running the program from the top, and the others look on and take
//! chunks of whatever step the leader has opened. A step never waits for a thread that did not show up: with every
//! other worker busy elsewhere the leader does all chunks itself, so any number of teams can share a pool.

use crate::Crew;
use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

type Job<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// The threads that work on one inference.
pub struct Team {
    /// Lives on the stack of [`scope`](Self::scope), which outlasts the team.
    shared: NonNull<Shared>,
    /// Outlasts the team too.
    crew: Option<NonNull<Crew>>,
    threads: usize,
    late: Late,
}

/// When the leader fetches those who are not there yet.
struct Late {
    since: Instant,
    patience: Duration,
}

/// Threads that are awake are there sooner.
const PATIENCE: Duration = Duration::from_micros(50);
/// Patience doubles every time, up to this: whoever has not come then has other work.
const MOST_PATIENCE: Duration = Duration::from_micros(400);

struct Shared {
    /// Number of the open step, 0 while none is open; steps are numbered from 1.
    open: AtomicUsize,
    shares: [Share; MOST_SHARES],
    /// Onlookers that have come.
    present: AtomicUsize,
    /// Onlookers that may be reading `job`.
    inside: AtomicUsize,
    finished: AtomicBool,
    job: UnsafeCell<Option<Step>>,
}

/// What the open step does.
#[derive(Clone, Copy)]
struct Step {
    job: Job<'static>,
    chunks: usize,
    /// Parts the chunks are cut into, one for each worker to start with.
    shares: usize,
    /// The last chunk of a share is left to whoever is at it.
    keeps: bool,
}

/// Progress through a share, on a cache line of its own.
#[repr(align(128))]
struct Share {
    /// The next chunk.
    next: AtomicUsize,
    /// A worker is at it that will not leave before all its chunks are taken.
    kept: AtomicBool,
}

/// Shares that a step is cut into at most; more threads than this start on the same ones.
const MOST_SHARES: usize = 32;

// SAFETY: `job` is written by the leader only while no step is open and `inside` is zero, and read by onlookers only
// between raising `inside` and lowering it, after seeing an open step.
unsafe impl Sync for Shared {}

impl Team {
    /// Runs `program` with the crew's threads at its side; without a crew, on the calling thread alone.
    pub fn scope<R: Send>(crew: Option<&Crew>, program: impl FnOnce(&mut Team) -> R + Send) -> R {
        let shared = Shared {
            open: AtomicUsize::new(0),
            shares: [const { Share { next: AtomicUsize::new(0), kept: AtomicBool::new(false) } };
                MOST_SHARES],
            present: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            finished: AtomicBool::new(false),
            job: UnsafeCell::new(None),
        };
        let late = || Late { since: Instant::now(), patience: PATIENCE };
        match crew.filter(|crew| crew.threads() > 1) {
            None => {
                program(&mut Team { shared: NonNull::from(&shared), crew: None, threads: 1, late: late() })
            }
            Some(crew) => crew.pool().install(|| {
                let threads = crew.threads();
                let lead = || {
                    let _duty = crew.on_duty();
                    let _finish = Finish(&shared);
                    let crew = Some(NonNull::from(crew));
                    program(&mut Team { shared: NonNull::from(&shared), crew, threads, late: late() })
                };
                rayon::join(lead, || look_on(&shared, crew, 1)).0
            }),
        }
    }

    /// Threads that may take part, the leader included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `task(chunk, worker)` once for every chunk in `0..chunks`, in any order, on any of the threads, and
    /// returns when all calls have. `worker` is below [`threads`](Self::threads) and no two calls that overlap in
    /// time have the same.
    pub fn for_each(&mut self, chunks: usize, task: impl Fn(usize, usize) + Sync) {
        self.run(chunks, false, task);
    }

    /// The same for short chunks that read much: a worker that is through leaves another the last chunk of its share, which by
    /// the time that it had what it reads would mostly be done.
    pub(crate) fn for_each_near(&mut self, chunks: usize, task: impl Fn(usize, usize) + Sync) {
        self.run(chunks, true, task);
    }

    fn run(&mut self, chunks: usize, keeps: bool, task: impl Fn(usize, usize) + Sync) {
        if self.threads == 1 || chunks <= 1 {
            (0..chunks).for_each(|chunk| task(chunk, 0));
            return;
        }
        // SAFETY: `scope` hands out teams only for as long as `shared` lives.
        let shared = unsafe { self.shared.as_ref() };
        let job: Job<'_> = &task;
        // SAFETY: the lifetime is erased for as long as the step is open or an onlooker is inside; `Close` ends both
        // before this function returns or unwinds, and `task` outlives it.
        let job = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        let shares = self.threads.min(MOST_SHARES);
        for (i, share) in shared.shares[..shares].iter().enumerate() {
            share.next.store(chunks * i / shares, Ordering::Relaxed);
            share.kept.store(false, Ordering::Relaxed);
        }
        let step = Step { job, chunks, shares, keeps };
        // SAFETY: no step is open and nobody is inside: the previous `Close` waited for that.
        unsafe { *shared.job.get() = Some(step) };
        shared.open.store(1, Ordering::SeqCst);
        let _close = Close(shared);
        work(shared, step, 0, || self.fetch_late());
    }

    /// Fetches the onlookers that should have come by now.
    fn fetch_late(&mut self) {
        let Self { shared, crew: Some(crew), threads, late } = self else { return };
        // SAFETY: `scope` hands out teams only for as long as both live.
        let (shared, crew) = unsafe { (shared.as_ref(), crew.as_ref()) };
        let everybody = shared.present.load(Ordering::Relaxed) + 1 == *threads;
        if late.patience <= MOST_PATIENCE && !everybody && late.since.elapsed() >= late.patience {
            crew.fetch();
            late.patience *= 2;
        }
    }
}

/// Does the worker's own share, then what the others have left of theirs. The same worker meets the same part of the
/// map step after step, which then is in its cache. False: there was nothing to do.
fn work(shared: &Shared, step: Step, worker: usize, mut between: impl FnMut()) -> bool {
    let mut any = false;
    let Step { job, chunks, shares, keeps } = step;
    for i in 0..shares {
        let own = i == 0;
        let at = (worker + i) % shares;
        let Share { next, kept } = &shared.shares[at];
        if own {
            kept.store(true, Ordering::Relaxed);
        }
        let end = chunks * (at + 1) / shares;
        let left = |next: usize| next + usize::from(keeps && !own && kept.load(Ordering::Relaxed)) < end;
        while left(next.load(Ordering::Relaxed)) {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            if chunk < end {
                job(chunk, worker);
                between();
                any = true;
            }
        }
    }
    any
}

/// Starts onlookers `worker..`, one of them on this thread.
fn look_on(shared: &Shared, crew: &Crew, worker: usize) {
    let own = || {
        let _duty = crew.on_duty();
        shared.present.fetch_add(1, Ordering::Relaxed);
        let mut idle = 0u32;
        // Spinning is for the microseconds between two steps; whoever waits longer lets others have the core, so that
        // more threads than cores cost little.
        while !shared.finished.load(Ordering::Acquire) {
            if shared.open.load(Ordering::Relaxed) == 0 || !help(shared, worker) {
                idle += 1;
                wait(idle);
            } else {
                idle = 0;
            }
        }
    };
    if worker + 1 < crew.threads() {
        rayon::join(own, || look_on(shared, crew, worker + 1));
    } else {
        own();
    }
}

/// Waits a moment, the `round`-th time in a row.
fn wait(round: u32) {
    if round < 1 << 10 { std::hint::spin_loop() } else { std::thread::yield_now() }
}

/// Takes part in the open step; false when there was nothing to do.
fn help(shared: &Shared, worker: usize) -> bool {
    struct Leave<'a>(&'a AtomicUsize);
    impl Drop for Leave<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    shared.inside.fetch_add(1, Ordering::SeqCst);
    let _leave = Leave(&shared.inside);
    if shared.open.load(Ordering::SeqCst) == 0 {
        return false;
    }
    // SAFETY: `inside` was raised before the step was seen open, so the leader waits for us before touching `job`.
    let Some(step) = (unsafe { *shared.job.get() }) else { return false };
    work(shared, step, worker, || ())
}

/// Closes the step and waits until no onlooker is inside, also when the leader's task unwinds.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.open.store(0, Ordering::SeqCst);
        let mut spins = 0u32;
        while self.0.inside.load(Ordering::SeqCst) != 0 {
            spins += 1;
            wait(spins);
        }
    }
}

/// Sends the onlookers home, also when the program unwinds.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.finished.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn every_chunk_once(crew: Option<&Crew>) {
        Team::scope(crew, |team| {
            for chunks in [0, 1, 2, 7, 100] {
                let hits: Vec<AtomicU32> = (0..chunks).map(|_| AtomicU32::new(0)).collect();
                let busy: Vec<AtomicBool> = (0..team.threads()).map(|_| AtomicBool::new(false)).collect();
                let keeps = chunks % 3 == 1;
                team.run(chunks, keeps, |chunk, worker| {
                    assert!(!busy[worker].swap(true, Ordering::SeqCst), "two calls share worker {worker}");
                    hits[chunk].fetch_add(1, Ordering::SeqCst);
                    busy[worker].store(false, Ordering::SeqCst);
                });
                assert!(hits.iter().all(|hit| hit.load(Ordering::SeqCst) == 1));
            }
        });
    }

    #[test]
    fn runs_every_chunk_once_at_any_size() {
        every_chunk_once(None);
        for threads in [1, 2, 3, 8] {
            let crew = Crew::start(threads).unwrap();
            for _ in 0..50 {
                every_chunk_once(Some(&crew));
            }
        }
    }

    #[test]
    fn many_teams_share_a_pool() {
        let crew = Crew::start(2).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| (0..30).for_each(|_| every_chunk_once(Some(&crew))));
            }
        });
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_survives() {
        let crew = Crew::start(3).unwrap();
        for _ in 0..20 {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                Team::scope(Some(&crew), |team| team.for_each(64, |chunk, _| assert_ne!(chunk, 63)));
            }));
            assert!(outcome.is_err());
            every_chunk_once(Some(&crew));
        }
    }
}
