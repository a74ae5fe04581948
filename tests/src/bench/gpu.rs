//! Times on a GPU: medians of replays of a graph between two events of the device, so that neither the host nor the gaps between launches
//! are in them.

use anyhow::{Result, anyhow};
use mhc_core::{
    DType, Dims, Problem, Slot, Stream, Tensor,
    gpu::{self, Event, Graph},
    ops::Expand,
};

use super::{
    Bench, Noise, Ready,
    record::{Failed, Gpu, Measured, Record, Row},
};
use crate::machine;

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Replays before the first that counts.
    pub warm: usize,
    /// Replays of which a time is the median.
    pub samples: usize,
    /// Bytes that the copy reads, and writes again.
    pub copied: usize,
    /// Bytes rewritten before each cold replay: more than the last level cache.
    pub flushed: usize,
}

impl Scale {
    /// For times that are kept.
    pub const FULL: Scale = Scale { warm: 3, samples: 40, copied: 1 << 30, flushed: 256 << 20 };
    /// To see that it runs.
    pub const TINY: Scale = Scale { warm: 0, samples: 1, copied: 1 << 15, flushed: 1 << 15 };
}

/// Median times of one replay in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// After other memory was written, so that operands come from memory; that is outside of the measured time.
    pub cold: f64,
    /// Right after the replay before.
    pub hot: f64,
}

/// Measures on one stream.
struct Clock {
    stream: Stream,
    flush: Ready,
    events: Vec<(Event, Event)>,
    warm: usize,
}

impl Clock {
    fn new(stream: &Stream, scale: Scale) -> Result<Self> {
        // Rows of 16 KiB, written eight times as often as read.
        const STREAMS: usize = 8;
        const CHANNELS: usize = 4096;
        let dims = Dims::new(scale.flushed.div_ceil(4 * CHANNELS * STREAMS), STREAMS, CHANNELS);
        let flush = Bench::new("flush", vec![Problem::new(Expand, dims, DType::F32)]);
        let events = (0..scale.warm + scale.samples).map(|_| Ok((Event::new(stream)?, Event::new(stream)?)));
        let flush = Ready::new(stream, &flush, false)?;
        Ok(Self { stream: stream.clone(), flush, events: events.collect::<Result<_>>()?, warm: scale.warm })
    }

    fn times(&mut self, bench: &Bench) -> Result<Times> {
        let mut work = Ready::new(&self.stream, bench, false)?;
        work.prepare()?;
        self.times_of(|| work.run())
    }

    /// Microseconds of a copy of so many bytes: the driver's, or one stream expanded to one, whichever is faster. Neither always is: the
    /// driver's moved 2425 GB/s on an H100 where the other moved 2896, and more than the other on an H200.
    fn copy(&mut self, bytes: usize) -> Result<f64> {
        const ROW: usize = 4096;
        let expand = Problem::new(Expand, Dims::new((bytes / 4 / ROW).max(1), 1, ROW), DType::F32);
        let expand = self.times(&Bench::new("copy", vec![expand]))?.cold;
        Ok(self.driver_copy(bytes)?.cold.min(expand))
    }

    fn driver_copy(&mut self, bytes: usize) -> Result<Times> {
        let noise = Noise::new().fill(&Slot::coeff("copy", &[]), bytes / 4, DType::F32);
        let from = Tensor::from_bytes(&self.stream, DType::F32, &[bytes / 4], &noise)?;
        let mut to = Tensor::empty(&self.stream, DType::F32, &[bytes / 4])?;
        let stream = self.stream.clone();
        self.times_of(|| gpu::copy(&stream, &from.view(), &mut to.view_mut()))
    }

    /// Of work whose operands outlive this call.
    fn times_of(&mut self, mut work: impl FnMut() -> mhc_core::Result<()>) -> Result<Times> {
        // Once by itself: what is wrong with a launch is not hidden in a graph, and everything is loaded.
        work()?;
        self.stream.sync()?;
        let mut graph = Graph::capture(&self.stream, &mut work)?;
        Ok(Times { cold: self.median(&mut graph, true)?, hot: self.median(&mut graph, false)? })
    }

    fn median(&mut self, graph: &mut Graph, flush: bool) -> Result<f64> {
        for (start, end) in &self.events {
            if flush {
                self.flush.run()?;
            }
            start.record(&self.stream)?;
            // SAFETY: the callers of `times_of` keep the operands until after it, and only this stream uses them.
            unsafe { graph.replay(&self.stream)? };
            end.record(&self.stream)?;
        }
        self.stream.sync()?;
        let us = |(start, end): &(Event, Event)| Ok(f64::from(end.elapsed_ms(start)?) * 1e3);
        let mut times = self.events[self.warm..].iter().map(us).collect::<Result<Vec<_>>>()?;
        times.sort_by(f64::total_cmp);
        let n = times.len();
        Ok((times[(n - 1) / 2] + times[n / 2]) / 2.0)
    }
}

/// What `each` is told as soon as it is known.
#[derive(Debug)]
pub enum News<'a> {
    /// What a copy reaches, and what an empty graph takes.
    Device(&'a Measured),
    /// A time.
    Row(&'a Row),
    /// No time.
    Failed(&'a Failed),
}

/// Times every bench on a GPU. One that fails is noted and does not keep the others from being timed.
pub fn measure(
    record: &mut Record,
    stream: &Stream,
    benches: &[Bench],
    scale: Scale,
    mut each: impl FnMut(&Measured, News<'_>),
) -> Result<()> {
    let mut clock = Clock::new(stream, scale)?;
    let info = stream.device().info();
    let device = info.id.to_string();
    let empty = Bench::new("empty", vec![Problem::new(Expand, Dims::new(1, 1, 8), DType::F32)]);
    let gpu = Gpu {
        samples: scale.samples,
        copy_bytes: 2 * scale.copied as u64,
        flushed_bytes: scale.flushed as u64,
        empty_graph_us: clock.times(&empty)?.cold,
        first_calls: Vec::new(),
    };
    let measured = Measured {
        id: device.clone(),
        name: info.name.clone(),
        driver: machine::driver(info),
        copy_gb_s: 2.0 * scale.copied as f64 / clock.copy(scale.copied)? / 1e3,
        stolen: None,
        gpu: Some(gpu),
    };
    each(&measured, News::Device(&measured));
    record.devices.push(measured.clone());
    for bench in benches {
        let (id, device, bytes, limit) = (bench.id.clone(), device.clone(), bench.bytes(), bench.limit);
        match clock.times(bench) {
            Ok(Times { cold, hot }) => {
                let row = Row { id, device, us: cold, hot_us: Some(hot), bytes, limit };
                each(&measured, News::Row(&row));
                record.rows.push(row);
            }
            Err(e) => {
                let failed = Failed { id, device, why: format!("{e:#}") };
                each(&measured, News::Failed(&failed));
                record.failed.push(failed);
                stream.sync().map_err(|e| anyhow!("the device is lost: {e}"))?;
            }
        }
    }
    Ok(())
}
