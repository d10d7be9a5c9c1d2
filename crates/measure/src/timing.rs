//! How work is timed, and the memory that it is timed in.

use std::time::Instant;

use lowtide_device::cuda::Event;
use lowtide_device::{Memory, Queue, memory};
use lowtide_random::Philox;
use lowtide_tiers::{Arena, Fill};
use lowtide_units::Bytes;

use crate::error::MeasureError;

/// The lower quartile of the time of `work`, repeated for about `seconds`, at least five times:
/// what it takes when nothing else disturbs it much.
pub(crate) fn quartile(seconds: f64, mut work: impl FnMut()) -> f64 {
    work();
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || (begin.elapsed().as_secs_f64() < seconds && times.len() < 1000) {
        let start = Instant::now();
        work();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}

/// The time of `work` on a queue: as [`quartile`] on the CPU; on a GPU the median over batches of
/// launches between two events, so that launching one runs under the one before.
pub(crate) fn timed(q: &Queue, seconds: f64, mut work: impl FnMut()) -> Result<f64, MeasureError> {
    let Some(stream) = q.cuda() else {
        return Ok(quartile(seconds, work));
    };
    let (start, end) = (Event::new(stream.gpu())?, Event::new(stream.gpu())?);
    let mut batch = |n: u32| -> Result<f64, MeasureError> {
        stream.record(&start)?;
        (0..n).for_each(|_| work());
        stream.record(&end)?;
        stream.synchronize()?;
        Ok(end.seconds_since(&start)? / f64::from(n))
    };
    batch(1)?; // compiles, loads, chooses
    let once = batch(2)?;
    let n = (seconds / 5.0 / once.max(1e-6)).clamp(1.0, 200.0) as u32;
    let mut times = [0.0; 5];
    for t in &mut times {
        *t = batch(n)?;
    }
    times.sort_by(f64::total_cmp);
    Ok(times[2])
}

/// Memory for kernels of `q`, filled with numbers: a product of zeros runs faster than any other.
pub(crate) fn device_arena(q: &Queue, bytes: Bytes) -> Result<Memory, MeasureError> {
    let Some(stream) = q.cuda() else {
        return Ok(Memory::new(Arena::new(bytes, Fill::Zero)?));
    };
    let mut memory = Memory::cuda(stream.gpu(), bytes)?;
    // bf16 about normally distributed, in pairs: read as f32 they are such numbers too. A product
    // of numbers with few different exponents takes more power, and a warm chip slows down for it:
    // uniform exponents ran 20% faster than the tensors of a step do.
    const NUMBERS: u64 = 4_194_301; // odd, so that rows differ
    let random = Philox::new(0, 0);
    let pattern: Vec<u16> = (0..NUMBERS)
        .map(|i| {
            let r = random.below(i, 1 << 48);
            let sum = (r & 0xffff) + (r >> 16 & 0xffff) + (r >> 32);
            let x = (sum as f32 - 1.5 * 65_535.0) / 32_768.0;
            (x.to_bits() >> 16) as u16
        })
        .collect();
    let mut at = 0;
    while at < bytes.0 {
        let n = (2 * NUMBERS).min(bytes.0 - at) / 2;
        if n == 0 {
            break;
        }
        if at == 0 {
            memory::store(memory.part(0, 2 * n), &pattern[..n as usize]);
        } else {
            let [to, from] = memory.parts([(at, 2 * n), (0, 2 * n)]);
            q.copy(to, from.into_src());
        }
        at += 2 * n;
    }
    stream.synchronize()?;
    Ok(memory)
}
