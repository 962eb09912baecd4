//! [`Crew`]: the threads of a pool, and how to fetch the ones that are late.
//!
//! A thread that has slept is woken where it last ran. With few processors Linux does not always look for an idle one,
//! and the thread then stands in line behind the very thread that woke it, for a time slice of milliseconds, while
//! another processor has nothing to do. That is as long as an inference takes, so the leader of a
//! [`Team`](crate::Team) fetches whoever is late.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The threads of a rayon pool.
pub struct Crew {
    pool: Arc<rayon::ThreadPool>,
    /// For each thread where it may run, while it is in no team.
    resting: Box<[Mutex<Option<Place>>]>,
}

impl Crew {
    /// The threads of `pool`.
    pub fn new(pool: Arc<rayon::ThreadPool>) -> Self {
        let resting = (0..pool.current_num_threads()).map(|_| Mutex::default()).collect();
        Self { pool, resting }
    }

    /// So many new threads.
    ///
    /// # Errors
    /// When the system refuses to start them.
    pub fn start(threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        Ok(Self::new(Arc::new(pool)))
    }

    /// The pool.
    pub fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The calling thread of the pool joins a team, until what this gives is dropped.
    pub(crate) fn on_duty(&self) -> impl Drop {
        struct Duty<'a>(&'a Crew);
        impl Drop for Duty<'_> {
            fn drop(&mut self) {
                if let Some(mut resting) = self.0.own() {
                    *resting = Place::of_this_thread();
                }
            }
        }
        if let Some(mut resting) = self.own() {
            *resting = None;
        }
        Duty(self)
    }

    fn own(&self) -> Option<MutexGuard<'_, Option<Place>>> {
        let resting = self.resting.get(self.pool.current_thread_index()?)?;
        Some(resting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends the threads that are in no team away from the processor of the calling thread, if they stand in line there.
    pub(crate) fn fetch(&self) {
        for resting in &self.resting {
            if let Ok(resting) = resting.try_lock()
                && let Some(place) = &*resting
            {
                place.send_away();
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
use elsewhere::Place;
#[cfg(target_os = "linux")]
use linux::Place;

#[cfg(target_os = "linux")]
mod linux {
    /// A thread and the processors it may run on.
    #[derive(Clone, Copy)]
    pub(super) struct Place {
        thread: libc::pid_t,
        pub(super) processors: libc::cpu_set_t,
    }

    /// The processors that a thread may run on, 0 being the calling one.
    fn processors(thread: libc::pid_t) -> Option<libc::cpu_set_t> {
        // SAFETY: a set of processors is plain bits, and the call writes no more than its size.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            (libc::sched_getaffinity(thread, size_of_val(&set), &mut set) == 0).then_some(set)
        }
    }

    /// Whether two sets hold the same processors.
    pub(super) fn same(a: &libc::cpu_set_t, b: &libc::cpu_set_t) -> bool {
        // SAFETY: compares plain bits.
        unsafe { libc::CPU_EQUAL(a, b) }
    }

    impl Place {
        pub(super) fn of_this_thread() -> Option<Self> {
            // SAFETY: asks for a number.
            let thread = unsafe { libc::gettid() };
            Some(Self { thread, processors: processors(0)? })
        }

        /// Moves the thread off the calling thread's processor. A waiting thread moves when that is taken from the set of
        /// its processors, and stays where it went when it is given back.
        pub(super) fn send_away(&self) {
            let Self { thread, processors: all } = self;
            // Others may be at it, or somebody has set it meanwhile: then leave it alone.
            if !processors(*thread).is_some_and(|now| same(&now, all)) {
                return;
            }
            // SAFETY: sets of processors are read within their size; a thread that may not be moved stays.
            unsafe {
                let Ok(here) = usize::try_from(libc::sched_getcpu()) else { return };
                let size = size_of_val(all);
                if here >= 8 * size || !libc::CPU_ISSET(here, all) || libc::CPU_COUNT(all) < 2 {
                    return;
                }
                let mut others = *all;
                libc::CPU_CLR(here, &mut others);
                if libc::sched_setaffinity(*thread, size, &others) == 0 {
                    libc::sched_setaffinity(*thread, size, all);
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    /// Schedulers of other systems are left alone.
    pub(super) struct Place;

    impl Place {
        pub(super) fn of_this_thread() -> Option<Self> {
            None
        }

        pub(super) fn send_away(&self) {}
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn who_is_sent_away_may_run_where_it_could_before() {
        let (tell, told) = mpsc::channel();
        let (wake, woken) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(Place::of_this_thread().unwrap()).unwrap();
            woken.recv().unwrap();
            Place::of_this_thread().unwrap()
        });
        let before = told.recv().unwrap();
        before.send_away();
        wake.send(()).unwrap();
        let after = thread.join().unwrap();
        assert!(linux::same(&after.processors, &before.processors));
    }

    #[test]
    fn only_threads_in_no_team_are_known() {
        let crew = Crew::start(2).unwrap();
        let known = |crew: &Crew| crew.resting.iter().filter(|place| place.lock().unwrap().is_some()).count();
        assert_eq!(known(&crew), 0);
        crew.pool().broadcast(|_| drop(crew.on_duty()));
        assert_eq!(known(&crew), 2);
        crew.pool().install(|| {
            let duty = crew.on_duty();
            assert_eq!(known(&crew), 1);
            crew.fetch();
            drop(duty);
        });
        assert_eq!(known(&crew), 2);
        // A thread of no pool is nobody's.
        drop(crew.on_duty());
        assert_eq!(known(&crew), 2);
    }
}
