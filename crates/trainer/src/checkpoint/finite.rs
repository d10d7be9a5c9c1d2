//! Whether the numbers of a state are numbers: looked at while they pass through memory anyway, to be written or read.
//!
//! Bound: each byte is read once, mostly from a core's cache.

use lowtide_workload::Encoding;

/// Bytes that are looked at before what was found is asked for.
const BLOCK: usize = 16 << 10;

/// The first of these entries that is infinite or no number, which entry it is. What is no float has none.
pub(crate) fn first_bad(bytes: &[u8], encoding: Encoding) -> Option<u64> {
    // Exponents of a word's numbers, and the last bit of each.
    let (exponents, ones) = match encoding {
        Encoding::F32 => (0x7f80_0000u32, 0x0080_0000),
        Encoding::Bf16 => (0x7f80_7f80, 0x0080_0080),
        Encoding::I16 | Encoding::Code => return None,
    };
    // Such a number has ones alone in its exponent: one more carries into the sign's place, and in no other.
    let carried = |word: [u8; 4]| (u32::from_le_bytes(word) & exponents) + ones;
    let signs = (exponents + ones) & !exponents;
    let any = |block: &[u8]| {
        let (words, rest) = block.as_chunks();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        // Without a branch for each, so that the compiler uses wide registers.
        let all = words
            .iter()
            .fold(carried(last), |all, &word| all | carried(word));
        all & signs != 0
    };
    let block = bytes.chunks(BLOCK).position(any)? * BLOCK;
    let size = encoding.size() as usize;
    let inside = bytes[block..].chunks(size).position(any)?;
    Some((block / size + inside) as u64)
}

/// What is said of such an entry, one of an array of this name.
pub(crate) fn bad_number(array: &str, entry: u64) -> String {
    format!("{array} is infinite or no number at entry {entry}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_found_wherever_it_is() {
        let per_block = BLOCK / 4;
        let n = 3 * per_block + 5;
        let bad32 = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        for at in [0, 1, per_block - 1, per_block, 2 * per_block + 7, n - 1] {
            let mut all = vec![f32::MAX; n];
            (all[n / 2], all[n / 3]) = (f32::MIN_POSITIVE / 2.0, -0.0);
            let bytes = |all: &[f32]| all.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
            assert_eq!(first_bad(&bytes(&all), Encoding::F32), None);
            for bad in bad32 {
                all[at] = bad;
                assert_eq!(
                    first_bad(&bytes(&all), Encoding::F32),
                    Some(at as u64),
                    "{bad}"
                );
            }
            let mut all = vec![0x7f7fu16; n];
            let bytes = |all: &[u16]| all.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
            assert_eq!(first_bad(&bytes(&all), Encoding::Bf16), None);
            for bad in [0x7f80, 0xff80, 0x7fc0, 0xffff] {
                all[at] = bad;
                assert_eq!(first_bad(&bytes(&all), Encoding::Bf16), Some(at as u64));
                assert_eq!(first_bad(&bytes(&all), Encoding::I16), None);
                assert_eq!(first_bad(&bytes(&all), Encoding::Code), None);
            }
        }
    }
}
