//! Weights in and out: Hugging Face's safetensors files, and first values for new models.
//!
//! Everything here delivers or takes *ranges of a parameter* as f32, so that the caller can turn
//! a checkpoint into its own layout (bf16 weight, remainder, f32) piece by piece. Reading is bound
//! by the disk; no file is mapped and at most a band of one tensor is held.

mod checkpoint;
mod dtype;
mod header;
mod init;
mod writer;

pub use checkpoint::{Checkpoint, weight_files};
pub use dtype::FileDtype;
pub use header::{SafetensorsHeader, StoredDtype, StoredTensor};
pub(crate) use init::Drawn;
pub use init::random_init;
pub use writer::HfWriter;

/// A band of a transposed tensor held in memory takes about this much at most.
const BAND_BYTES: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use lowtide_workload::ParamId;
    use lowtide_workload::{Dtype, Family, ModelShape};

    use super::{BAND_BYTES, Checkpoint, HfWriter, random_init};
    use crate::ModelError;
    use crate::params::specs;

    /// Bands of 1, 3 and all columns of the file, on both sides: the same numbers.
    #[test]
    fn transposed_tensors_pass_in_bands() {
        let shape = ModelShape {
            vocab: 11,
            hidden: 8,
            intermediate: 20,
            layers: 1,
            heads: 2,
            kv_heads: 2,
            head_dim: 4,
            max_positions: 5,
            ..ModelShape::builtin("gpt3-13b").expect("a built-in shape")
        };
        assert_eq!(shape.family, Family::Gpt2);
        let value = |param: ParamId, range: std::ops::Range<u64>| {
            let mut out = vec![f32::NAN; (range.end - range.start) as usize];
            random_init(&shape, 3, param, range, &mut out);
            out
        };
        // 32 bytes are one row of 8 inputs in f32, 96 are three.
        for (write_bytes, read_bytes) in [(32, 96), (96, 32), (BAND_BYTES, 96), (96, BAND_BYTES)] {
            let dir = tempfile::tempdir().expect("a directory");
            let mut writer = HfWriter::new(&shape, Dtype::F32, None);
            writer.band_bytes = write_bytes;
            let wrote = writer.write(dir.path(), |param, range, out: &mut [f32]| {
                out.copy_from_slice(&value(param, range));
                Ok::<(), ModelError>(())
            });
            wrote.expect("an export");
            let mut checkpoint = Checkpoint::open(dir.path(), &shape).expect("a checkpoint");
            checkpoint.band_bytes = read_bytes;
            for (param, spec) in specs(&shape).pairs() {
                let n = spec.elements();
                // Whole, then from behind in pieces that end inside rows.
                let pieces = (0..n.div_ceil(13))
                    .rev()
                    .map(|i| 13 * i..n.min(13 * i + 13));
                for range in std::iter::once(0..n).chain(pieces) {
                    let mut got = vec![f32::NAN; (range.end - range.start) as usize];
                    checkpoint
                        .read(param, range.clone(), &mut got)
                        .expect("a read");
                    assert_eq!(got, value(param, range.clone()), "{} {range:?}", spec.name);
                }
            }
        }
    }
}
