//! One CPU for everything, for a while.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::rig::Failure;

const THIS_THREAD: Pid = Pid::from_raw(0);

/// While it lives, this thread, and threads and processes that it starts meanwhile, run on one CPU.
#[derive(Debug)]
pub(crate) struct Pinned {
    before: CpuSet,
}

impl Pinned {
    pub(crate) fn to_one_cpu() -> Result<Self, Failure> {
        let before = sched_getaffinity(THIS_THREAD)?;
        // The last: interrupts are mostly the first one's.
        let last = (0..CpuSet::count())
            .rev()
            .find(|cpu| before.is_set(*cpu) == Ok(true));
        let mut one = CpuSet::new();
        one.set(last.ok_or_else(|| Failure::new("no CPU to run on"))?)?;
        sched_setaffinity(THIS_THREAD, &one)?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(error) = sched_setaffinity(THIS_THREAD, &self.before) {
            eprintln!("the CPUs cannot be given back: {error}");
        }
    }
}
