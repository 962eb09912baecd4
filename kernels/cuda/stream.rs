//! [`DeviceStream`]: a stream of NVIDIA's driver, with its graphs and events.

use super::device::{Device, Inner, check};
use super::driver::{Driver, Failure, Stream};
use super::launch::Launch;
use super::params::{Address, ConditionParams};
use cudarc::driver::sys;
use std::sync::Arc;

/// A stream, and what was recorded on it.
pub(super) struct DeviceStream {
    device: Arc<Inner>,
    stream: sys::CUstream,
    /// Records what is done under a condition, once there was any.
    body: Option<sys::CUstream>,
    /// Whether that is what is being recorded.
    inside: bool,
    graphs: Vec<sys::CUgraphExec>,
    stamps: Vec<sys::CUevent>,
    /// Stamps of the latest program.
    noted: usize,
}

// SAFETY: the driver's handles may be used from any thread that has made the context current.
unsafe impl Send for DeviceStream {}

/// Tries whether graphs with conditions can be recorded and run, whatever the driver says of itself.
pub(super) fn try_conditions(device: &Device) -> bool {
    /// CUDA version of the first driver with conditional nodes and everything they take.
    const FROM: u32 = 12040;
    if device.properties().driver_version < FROM {
        return false;
    }
    let Ok(number) = device.allocate(size_of::<u32>()) else { return false };
    let outcome = DeviceStream::new(&device.0).and_then(|mut stream| {
        let tried = stream.try_condition(number);
        if tried.is_err() {
            stream.abandon();
        }
        tried
    });
    // SAFETY: the stream that used it is gone.
    unsafe { device.free(number) };
    outcome.is_ok()
}

impl DeviceStream {
    pub(super) fn new(device: &Arc<Inner>) -> Result<Self, Failure> {
        device.bind()?;
        let (stream, device) = (create()?, device.clone());
        Ok(Self { device, stream, body: None, inside: false, graphs: vec![], stamps: vec![], noted: 0 })
    }

    /// Records and runs nothing under a condition.
    fn try_condition(&mut self, number: Address) -> Result<(), Failure> {
        self.record()?;
        // SAFETY: the number is there until the stream is gone.
        unsafe { self.begin_when(number) }?;
        self.end_when()?;
        let graph = self.recorded()?;
        // SAFETY: as above.
        unsafe { self.replay(graph) }?;
        self.wait()
    }

    /// Where work goes.
    fn current(&self) -> sys::CUstream {
        self.body.filter(|_| self.inside).unwrap_or(self.stream)
    }

    /// The graph that is being recorded, and what its next node comes after.
    fn recording(&self) -> Result<Option<Recording>, Failure> {
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let (mut graph, mut after, mut count) = (std::ptr::null_mut(), std::ptr::null(), 0);
        let null: *mut u8 = std::ptr::null_mut();
        // SAFETY: the stream is ours; the driver says nothing about edges that carry no data.
        check(unsafe {
            sys::cuStreamGetCaptureInfo_v3(
                self.stream,
                &mut status,
                null.cast(),
                &mut graph,
                &mut after,
                null.cast(),
                &mut count,
            )
        })?;
        let active = status == sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE;
        Ok(active.then_some(Recording { graph, after, count }))
    }

    /// Begins what is done under a condition.
    ///
    /// # Safety
    /// As for [`when`](Stream::when).
    unsafe fn begin_when(&mut self, number: Address) -> Result<(), Failure> {
        /// The condition has its default value at every launch of the graph.
        const ASSIGN: u32 = 1;
        let Recording { graph, .. } = self.recording()?.ok_or_else(not_recording)?;
        let mut handle = 0;
        // SAFETY: the graph is being recorded, the context current. What is not told otherwise is done.
        check(unsafe {
            sys::cuGraphConditionalHandleCreate(&mut handle, graph, self.device.context, 1, ASSIGN)
        })?;
        let params = ConditionParams { handle, number };
        // SAFETY: the kernel takes this struct; the number is valid by the caller's word.
        unsafe { self.launch(&ConditionParams::launch(), bytemuck::cast_slice(&[params])) }?;
        let graph = self.condition(handle)?;
        let body = match self.body {
            Some(body) => body,
            None => *self.body.insert(create()?),
        };
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        let (nodes, edges) = (std::ptr::null(), std::ptr::null());
        // SAFETY: the stream is ours and not recording; the graph is the node's, and empty.
        check(unsafe { sys::cuStreamBeginCaptureToGraph(body, graph, nodes, edges, 0, mode) })?;
        self.inside = true;
        Ok(())
    }

    /// Adds a node to a recording whose graph is done if `handle` is set; gives that graph.
    fn condition(&mut self, handle: sys::CUgraphConditionalHandle) -> Result<sys::CUgraph, Failure> {
        /// What comes next comes after these nodes, not also after others.
        const SET: u32 = 1;
        let Recording { graph, after, count } = self.recording()?.ok_or_else(not_recording)?;
        // SAFETY: zero is a value of every field.
        let mut params: sys::CUgraphNodeParams = unsafe { std::mem::zeroed() };
        params.type_ = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_CONDITIONAL;
        params.__bindgen_anon_1.conditional = sys::CUDA_CONDITIONAL_NODE_PARAMS {
            handle,
            type_: sys::CUgraphConditionalNodeType::CU_GRAPH_COND_TYPE_IF,
            size: 1,
            phGraph_out: std::ptr::null_mut(),
            ctx: self.device.context,
        };
        let mut node = std::ptr::null_mut();
        // SAFETY: the graph is being recorded, and `after` names nodes of it until the stream is asked for more. The
        // driver answers with an array of `size` graphs, which are the node's.
        unsafe {
            check(sys::cuGraphAddNode_v2(&mut node, graph, after, std::ptr::null(), count, &mut params))?;
            check(sys::cuStreamUpdateCaptureDependencies_v2(
                self.stream,
                &mut node,
                std::ptr::null(),
                1,
                SET,
            ))?;
            Ok(*params.__bindgen_anon_1.conditional.phGraph_out)
        }
    }
}

/// A graph that is being recorded.
struct Recording {
    graph: sys::CUgraph,
    after: *const sys::CUgraphNode,
    count: usize,
}

fn not_recording() -> Failure {
    Failure::Other("nothing is being recorded".to_owned())
}

/// A stream of the current context.
fn create() -> Result<sys::CUstream, Failure> {
    /// Does not wait for the stream that everybody shares.
    const NON_BLOCKING: u32 = 1;
    let mut stream = std::ptr::null_mut();
    // SAFETY: a context is current.
    check(unsafe { sys::cuStreamCreate(&mut stream, NON_BLOCKING) })?;
    Ok(stream)
}

impl Stream for DeviceStream {
    unsafe fn launch(&mut self, launch: &Launch, params: &[u64]) -> Result<(), Failure> {
        self.device.bind()?;
        let function = self.device.kernel(launch)?;
        let [x, y, z] = launch.grid;
        let mut args = [params.as_ptr().cast_mut().cast()];
        // SAFETY: the kernel takes one struct, which `params` is by the caller's word; it is read before this returns.
        check(unsafe {
            sys::cuLaunchKernel(
                function,
                x,
                y,
                z,
                launch.threads,
                1,
                1,
                launch.shared,
                self.current(),
                args.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        })
    }

    unsafe fn copy_in(&mut self, to: Address, from: *const u8, bytes: usize) -> Result<(), Failure> {
        self.device.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's word.
        check(unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.current()) })
    }

    unsafe fn copy(&mut self, to: Address, from: Address, bytes: usize) -> Result<(), Failure> {
        self.device.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's word.
        check(unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.current()) })
    }

    unsafe fn copy_out(&mut self, to: *mut u8, from: Address, bytes: usize) -> Result<(), Failure> {
        self.device.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's word.
        check(unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.current()) })
    }

    fn wait(&mut self) -> Result<(), Failure> {
        self.device.bind()?;
        // SAFETY: the stream is ours.
        check(unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    fn record(&mut self) -> Result<(), Failure> {
        self.device.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is ours, and not recording.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) })
    }

    fn recorded(&mut self) -> Result<usize, Failure> {
        self.device.bind()?;
        let mut graph = std::ptr::null_mut();
        let mut executable = std::ptr::null_mut();
        // SAFETY: the stream is ours and recording; the graph is ours then, and no longer needed once it is executable.
        unsafe {
            check(sys::cuStreamEndCapture(self.stream, &mut graph))?;
            let outcome = check(sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0));
            sys::cuGraphDestroy(graph);
            outcome?;
        }
        self.graphs.push(executable);
        Ok(self.graphs.len() - 1)
    }

    fn abandon(&mut self) {
        let mut graph = std::ptr::null_mut();
        // What was begun inside belongs to the graph around it.
        let _ = if self.inside { self.end_when() } else { Ok(()) };
        // SAFETY: the stream is ours; what was recorded, if anything, is ours then.
        unsafe {
            let _ = self.device.bind();
            sys::cuStreamEndCapture(self.stream, &mut graph);
            if !graph.is_null() {
                sys::cuGraphDestroy(graph);
            }
        }
    }

    unsafe fn when(&mut self, number: Address) -> Result<bool, Failure> {
        self.device.bind()?;
        if self.inside || !self.device.has_conditions() || self.recording()?.is_none() {
            return Ok(false);
        }
        // SAFETY: the caller's word.
        unsafe { self.begin_when(number) }?;
        Ok(true)
    }

    fn end_when(&mut self) -> Result<(), Failure> {
        self.device.bind()?;
        let Some(body) = self.body.filter(|_| self.inside) else {
            return Err(Failure::Other("no condition was begun".to_owned()));
        };
        self.inside = false;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream is ours and recording; the graph stays the node's.
        check(unsafe { sys::cuStreamEndCapture(body, &mut graph) })
    }

    unsafe fn replay(&mut self, number: usize) -> Result<(), Failure> {
        self.device.bind()?;
        let graph = self.graphs.get(number).ok_or_else(|| Failure::Other("no such recording".to_owned()))?;
        // SAFETY: the graph is ours; what it uses is valid by the caller's word.
        check(unsafe { sys::cuGraphLaunch(*graph, self.stream) })
    }

    fn stamp(&mut self, i: usize) -> Result<(), Failure> {
        self.device.bind()?;
        while self.stamps.len() <= i {
            let mut event = std::ptr::null_mut();
            // SAFETY: a context is current.
            check(unsafe { sys::cuEventCreate(&mut event, 0) })?;
            self.stamps.push(event);
        }
        self.noted = i + 1;
        // SAFETY: the event and the stream are ours.
        check(unsafe { sys::cuEventRecord(self.stamps[i], self.stream) })
    }

    fn lap(&mut self, i: usize) -> Result<u64, Failure> {
        self.device.bind()?;
        if i + 1 >= self.noted {
            return Err(Failure::Other(format!("stamp {i} or the next one is missing")));
        }
        if self.device.properties.driver_version < 12080 {
            return Err(Failure::Other("telling times needs a driver for CUDA 12.8 or newer".to_owned()));
        }
        let mut milliseconds = 0.0;
        // SAFETY: both events are ours and were recorded.
        check(unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, self.stamps[i], self.stamps[i + 1]) })?;
        Ok((f64::from(milliseconds) * 1e6) as u64)
    }
}

impl Drop for DeviceStream {
    fn drop(&mut self) {
        // SAFETY: everything is ours, and over once the stream has been waited for; what fails here cannot be helped.
        unsafe {
            let _ = self.device.bind();
            sys::cuStreamSynchronize(self.stream);
            for graph in &self.graphs {
                sys::cuGraphExecDestroy(*graph);
            }
            for event in &self.stamps {
                sys::cuEventDestroy_v2(*event);
            }
            for stream in self.body.into_iter().chain([self.stream]) {
                sys::cuStreamDestroy_v2(stream);
            }
        }
    }
}
