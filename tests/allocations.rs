//! After the first inference of a batch size none allocates, whatever is active.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use laud::exec::Request;
use laud::gate::{Always, Given, Learned, Pattern, Policy};
use laud::{Element, Output, RandomWeights, Session};
use laud_models::{NetConfig, NetSpec, SMALL_NETWORKS};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// The system's allocator, counting calls that take memory.
struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is forwarded to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BATCH: usize = 3;
/// Inferences for which the queue of a thread pool may take a block of memory.
const PER_BLOCK: usize = 30;

fn policies(spec: &NetSpec) -> Vec<Box<dyn Policy>> {
    let forced = |density, pattern| {
        let given = Given::forced(spec, BATCH, density, pattern, 3).unwrap();
        Box::new(given) as Box<dyn Policy>
    };
    let mut policies = vec![
        forced(0.0, Pattern::Scattered),
        forced(1.0, Pattern::Scattered),
        forced(0.1, Pattern::Scattered),
        forced(0.5, Pattern::Scattered),
        forced(0.9, Pattern::Clustered),
    ];
    policies.push(Box::new(Learned));
    policies.push(Box::new(Always));
    policies
}

/// Allocations after the first inference, and inferences. The first has nothing active.
fn count(session: &Session) -> (usize, usize) {
    let size = session.spec().input.size;
    let images: Vec<f32> = (0..BATCH * 3 * size.h * size.w).map(|i| (i % 17) as f32 / 17.0).collect();
    let policies = policies(session.spec());
    let mut output = Output::default();
    let (mut before, mut inferences) = (None, 0);
    for _ in 0..10 {
        for policy in &policies {
            // Smaller batches come with the memory of the larger.
            for batch in [BATCH, 1] {
                let images = &images[..images.len() / BATCH * batch];
                let request = Request { images, batch, features: true, masks: true, timed: true };
                session.infer_with(request, &**policy, &mut output).unwrap();
                before.get_or_insert_with(|| CALLS.load(Ordering::SeqCst));
                inferences += 1;
            }
        }
    }
    (CALLS.load(Ordering::SeqCst) - before.unwrap(), inferences)
}

/// One test, because all count with one counter; first without a pool, whose threads allocate when they start and end.
#[test]
fn inferences_do_not_allocate() {
    let check = |pool: Option<Arc<ThreadPool>>| {
        for json in SMALL_NETWORKS {
            let spec = NetConfig::from_json(json).and_then(|config| config.build()).unwrap();
            for element in [Element::F32, Element::Bf16] {
                let builder = Session::builder(spec.clone()).element(element);
                let builder = match &pool {
                    Some(pool) => builder.pool(pool.clone()),
                    None => builder.threads(1),
                };
                let (allocations, inferences) = count(&builder.build(&RandomWeights::new(&spec, 1)).unwrap());
                let most = if pool.is_some() { inferences.div_ceil(PER_BLOCK) } else { 0 };
                let what = format!("{allocations} allocations in {inferences} inferences");
                assert!(allocations <= most, "{json} in {element:?}: {what}");
            }
        }
    };
    check(None);
    check(Some(Arc::new(ThreadPoolBuilder::new().num_threads(2).build().unwrap())));
}
