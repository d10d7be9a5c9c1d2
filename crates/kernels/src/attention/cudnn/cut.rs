//! How cuDNN's attention is cut into executions: by shape alone, so that the bits are the same every
//! time.

use super::super::Attn;

/// Bytes of workspace that an execution of backward may want: eight heads of a tile of [`SIDE`] need 1 GiB, two bytes
/// for each pair of a query and a key.
const MOST: usize = 5 << 28;

/// Numbers of the projection that one call of forward may span: cuDNN's own indices may be 32 bits
/// wide.
const SPAN: usize = 1 << 31;

/// Numbers of the projection of one row of tokens up to which forward reads them where they lie: their bytes are
/// counted by 32 bits. Of longer rows the heads of a slice are copied together first.
const ROW: usize = 1 << 30;

/// Bytes kept free of any formula: what an engine wants beside its large tensors.
const MARGIN: usize = 1 << 20;

/// Tokens by which a tile's side is rounded up: cuDNN's own tiles divide it.
const WHOLE: usize = 128;

/// Most queries and keys of a tile. Eight heads of this side are faster than one of twice the side, which
/// has too few blocks for all multiprocessors: 61 ms for 92 at T = 32,768, 32 heads of 128, on an H100.
const SIDE: usize = 8192;

/// Whole rows of tokens, or some key heads of one row, whole or in tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub rows: usize,
    pub kv_heads: usize,
    /// Queries and keys of a tile; all of a row's where it is not cut further.
    pub side: usize,
}

impl Slice {
    /// The execution that computes all of an uncut slice.
    pub fn whole(self, a: &Attn) -> Part {
        Part {
            rows: self.rows,
            kv_heads: self.kv_heads,
            queries: a.seq,
            keys: a.seq,
            causal: true,
            tile: false,
        }
    }
}

/// What one execution of cuDNN's graph computes: rows, heads, queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub rows: usize,
    pub kv_heads: usize,
    pub queries: usize,
    pub keys: usize,
    /// Whether query i sees keys up to i; every query sees every key otherwise.
    pub causal: bool,
    /// Whether it is a tile, whose gradients lie by themselves.
    pub tile: bool,
}

impl Part {
    /// Bytes that cuDNN may want for backward: the gradient of the probabilities, and for grouped
    /// queries dk and dv of every query head. cuDNN 9.19 wants a little less than this on every chip
    /// and shape that was tried (`every_graph_is_accepted`).
    pub fn planned(self, a: &Attn) -> usize {
        let heads = self.rows * self.kv_heads * a.group();
        let [queries, keys] = [self.queries, self.keys].map(|n| n.next_multiple_of(WHOLE));
        let d_probabilities = heads * queries * keys * size_of::<u16>();
        let expanded = if a.group() > 1 {
            2 * heads * keys * a.head_dim * size_of::<u16>()
        } else {
            0
        };
        d_probabilities + expanded + MARGIN
    }
}

/// Bytes of the sums d_out·out of an execution, which cuDNN's kernels hand from one to the next.
pub(super) fn delta(a: &Attn, p: Part) -> usize {
    (p.rows * p.kv_heads * a.group() * p.queries * size_of::<f32>()).next_multiple_of(256)
}

/// One tile of a slice's queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// First query and first key, in the row of tokens.
    pub query: usize,
    pub key: usize,
    pub queries: usize,
    pub keys: usize,
    /// Whether no tile before it has these queries, or these keys.
    pub first: Which,
    /// Whether no tile behind it has them.
    pub last: Which,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Which {
    pub of_queries: bool,
    pub of_keys: bool,
}

impl Tile {
    pub fn part(self, a: &Attn, s: Slice) -> Part {
        Part {
            rows: s.rows,
            kv_heads: s.kv_heads,
            queries: self.queries,
            keys: self.keys,
            causal: self.query == self.key,
            tile: s.side < a.seq,
        }
    }
}

/// The tiles of a slice, in the order in which they run: of each block of queries those with the keys up
/// to it. A slice that is not cut is one tile.
pub(super) fn tiles(a: &Attn, s: Slice) -> Vec<Tile> {
    let blocks: Vec<usize> = (0..a.seq).step_by(s.side).collect();
    let length = |at: usize| s.side.min(a.seq - at);
    let mut all = Vec::new();
    for &query in &blocks {
        for &key in blocks.iter().take_while(|&&key| key <= query) {
            all.push(Tile {
                query,
                key,
                queries: length(query),
                keys: length(key),
                first: Which {
                    of_queries: key == 0,
                    of_keys: key == query,
                },
                last: Which {
                    of_queries: key == query,
                    of_keys: query + s.side >= a.seq,
                },
            });
        }
    }
    all
}

/// Bytes of what a slice in tiles needs beside cuDNN's own workspace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// The sums d_out·out of a tile, f32.
    pub delta: usize,
    /// A tile's dq, and each of dk and dv, bf16.
    pub dq: usize,
    pub dkv: usize,
    /// Sums over tiles, f32: dq of a block of queries, each of dk and dv of the whole row.
    pub dq_sum: usize,
    pub dkv_sum: usize,
}

impl Room {
    fn bytes(&self) -> usize {
        self.delta + self.dq + 2 * self.dkv + self.dq_sum + 2 * self.dkv_sum
    }
}

pub(super) fn tile_room(a: &Attn, s: Slice) -> Room {
    let up = |bytes: usize| bytes.next_multiple_of(256);
    let width = s.kv_heads * a.head_dim;
    let (queries, keys) = (s.side * a.group() * width, s.side * width);
    Room {
        delta: up(s.kv_heads * a.group() * s.side * size_of::<f32>()),
        dq: up(queries * size_of::<u16>()),
        dkv: up(keys * size_of::<u16>()),
        dq_sum: up(queries * size_of::<f32>()),
        dkv_sum: up(a.seq * width * size_of::<f32>()),
    }
}

/// Bytes of scratch of a slice of backward.
pub(super) fn slice_bytes(a: &Attn, s: Slice) -> usize {
    if s.side == a.seq {
        let part = s.whole(a);
        return delta(a, part) + part.planned(a);
    }
    let largest = tiles(a, s).into_iter().map(|t| t.part(a, s).planned(a));
    tile_room(a, s).bytes() + largest.max().unwrap_or(0)
}

/// How backward is cut: as many rows as fit, in slices of about the same size; of a row that does
/// not fit, as many key heads; of a key head that does not fit, tiles of about the same size.
pub(super) fn backward_slice(a: &Attn) -> Slice {
    let of = |rows, kv_heads| Slice {
        rows,
        kv_heads,
        side: a.seq,
    };
    let fits = |s: Slice| slice_bytes(a, s) <= MOST;
    if fits(of(1, a.kv_heads)) {
        let most = (1..=a.batch).rev().find(|&n| fits(of(n, a.kv_heads)));
        let slices = a.batch.div_ceil(most.unwrap_or(1));
        return of(a.batch.div_ceil(slices), a.kv_heads);
    }
    if let Some(most) = (1..=a.kv_heads).rev().find(|&n| fits(of(1, n))) {
        let slices = a.kv_heads.div_ceil(most);
        return of(1, a.kv_heads.div_ceil(slices));
    }
    let in_tiles = |blocks: usize, kv_heads: usize| Slice {
        side: a.seq.div_ceil(blocks).next_multiple_of(WHOLE).min(a.seq),
        ..of(1, kv_heads)
    };
    let tile_fits = |s: Slice| {
        let tile = Part {
            queries: s.side,
            keys: s.side,
            tile: true,
            ..s.whole(a)
        };
        tile.planned(a) <= MOST
    };
    // Tiles of few heads are small; of many they leave room for many heads.
    let (least, most) = (a.seq.div_ceil(SIDE).max(2), a.seq.div_ceil(WHOLE));
    let blocks = (least..=most).find(|&n| tile_fits(in_tiles(n, 1)));
    let blocks = blocks.unwrap_or(most);
    let fit = (1..=a.kv_heads).rev().find(|&n| {
        let s = in_tiles(blocks, n);
        tile_fits(s) && tile_room(a, s).bytes() <= MOST / 2
    });
    let slices = a.kv_heads.div_ceil(fit.unwrap_or(1));
    in_tiles(blocks, a.kv_heads.div_ceil(slices))
}

/// How forward is cut: as many rows a call as [`SPAN`] allows, at least one.
pub(super) fn forward_slice(a: &Attn) -> Slice {
    let row = a.seq * a.width();
    Slice {
        rows: (SPAN / row.max(1)).clamp(1, a.batch.max(1)),
        kv_heads: a.kv_heads,
        side: a.seq,
    }
}

/// Bytes of scratch, enough for either direction.
pub(in super::super) fn workspace(a: &Attn) -> usize {
    let forward = together(a).map_or(0, |b| Copies::of(&b).bytes());
    slice_bytes(a, backward_slice(a)).max(forward + MARGIN)
}

/// Whether the numbers of one row of tokens of so many are more than [`ROW`].
pub(super) fn is_long(seq: usize, width: usize) -> bool {
    seq * width > ROW
}

/// Of rows that are too long to be read where they lie, the attention of the heads that forward copies together: as
/// many as have room where backward has its scratch, one at least.
pub(super) fn together(a: &Attn) -> Option<Attn> {
    if !is_long(a.seq, a.width()) {
        return None;
    }
    let of = |heads, kv_heads| Attn {
        batch: 1,
        heads,
        kv_heads,
        ..*a
    };
    let divisors = |n: usize| (1..=n).rev().filter(move |&d| n.is_multiple_of(d));
    let whole = divisors(a.kv_heads).map(|n| of(n * a.group(), n));
    let parts = divisors(a.group()).map(|n| of(n, 1));
    let room = slice_bytes(a, backward_slice(a)).saturating_sub(MARGIN);
    let fits = |b: &Attn| Copies::of(b).bytes() <= room;
    Some(whole.chain(parts).find(fits).unwrap_or(of(1, 1)))
}

/// Bytes of the copies of some heads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copies {
    pub qkv: usize,
    pub out: usize,
}

impl Copies {
    pub fn of(b: &Attn) -> Self {
        let up = |width: usize| (b.seq * width * size_of::<u16>()).next_multiple_of(256);
        Self {
            qkv: up(b.width()),
            out: up(b.heads * b.head_dim),
        }
    }

    pub fn bytes(self) -> usize {
        self.qkv + self.out
    }
}

/// The slices of a direction, as first row, first key head, and size.
pub(super) fn slices(a: &Attn, s: Slice) -> Vec<(usize, usize, Slice)> {
    let mut all = Vec::new();
    for row in (0..a.batch).step_by(s.rows) {
        for head in (0..a.kv_heads).step_by(s.kv_heads) {
            let slice = Slice {
                rows: s.rows.min(a.batch - row),
                kv_heads: s.kv_heads.min(a.kv_heads - head),
                side: s.side,
            };
            all.push((row, head, slice));
        }
    }
    all
}

/// Into how many executions backward is cut.
#[cfg(test)]
pub(in super::super) fn executions(a: &Attn) -> usize {
    slices(a, backward_slice(a))
        .into_iter()
        .map(|(_, _, s)| tiles(a, s).len())
        .sum()
}

#[cfg(test)]
pub(super) mod testing {
    use lowtide_workload::Mask;

    use super::super::super::{Attn, Engine};

    pub fn attn([batch, heads, kv_heads, seq, head_dim]: [usize; 5]) -> Attn {
        Attn {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
            cap: None,
            scale: 1.0 / (head_dim as f32).sqrt(),
            mask: Mask::Causal,
            engine: Engine::Cudnn,
        }
    }

    /// B, H, KV, T, D.
    pub const SHAPES: [[usize; 5]; 17] = [
        [3, 4, 4, 7, 64],
        [1, 14, 2, 128, 64],
        [3, 4, 2, 129, 128],
        [2, 14, 2, 2048, 64],
        [1, 4, 4, 100, 96],
        [8, 32, 8, 2048, 128],
        [7, 16, 8, 2048, 128],
        [8, 16, 16, 2048, 128],
        [4, 32, 8, 4096, 128],
        [1, 32, 8, 8192, 128],
        [2, 14, 7, 8191, 64],
        [1, 2, 1, 33_000, 64],
        [1, 16, 2, 32_768, 128],
        [1, 16, 2, 131_072, 128],
        [2, 128, 1, 4099, 64],
        [1, 32, 32, 32_768, 128],
        [1, 24, 12, 20_000, 128],
    ];
}

#[cfg(test)]
mod tests {
    use super::testing::{SHAPES, attn};
    use super::*;

    #[test]
    fn slices_cover_everything_once_and_stay_small() {
        for shape in SHAPES {
            let a = attn(shape);
            let cut = backward_slice(&a);
            for cut in [cut, forward_slice(&a)] {
                let mut seen = vec![0; a.batch * a.kv_heads];
                for (row, head, s) in slices(&a, cut) {
                    for row in row..row + s.rows {
                        for head in head..head + s.kv_heads {
                            seen[row * a.kv_heads + head] += 1;
                        }
                    }
                }
                assert!(seen.iter().all(|&n| n == 1), "{shape:?}: {seen:?}");
            }
            // Beside an execution's workspace tiles need sums, of which dk's and dv's are those of a row.
            let sums = if cut.side < a.seq {
                tile_room(&a, cut).bytes()
            } else {
                0
            };
            assert!(workspace(&a) <= MOST + sums, "{shape:?}");
            assert!(sums <= MOST / 2, "{shape:?}: {sums}");
            for (_, _, s) in slices(&a, cut) {
                assert!(slice_bytes(&a, s) <= workspace(&a), "{shape:?}: {s:?}");
            }
        }
        let cut = |i: usize| backward_slice(&attn(SHAPES[i]));
        assert_eq!(cut(5).rows, 4, "rows are cut");
        assert_eq!(cut(9).kv_heads, 2, "heads are cut");
        assert_eq!(cut(12).side, 8192, "queries and keys are cut");
        assert_eq!(cut(15).side, 8192, "queries and keys are cut");
        assert_eq!(cut(15).kv_heads, 8, "several heads share a tile");
    }

    /// Rows of more than 2 GiB: a few heads at a time, which divide the others, in scratch that backward has anyway.
    #[test]
    fn heads_of_long_rows_are_copied_together() {
        for (shape, long) in [
            ([1, 32, 32, 262_144, 128], true),
            ([1, 32, 32, 131_072, 128], true),
            ([1, 16, 2, 524_288, 128], true),
            ([1, 16, 2, 262_144, 128], false),
            ([8, 32, 32, 2048, 128], false),
        ] {
            let a = attn(shape);
            let b = together(&a);
            assert_eq!(b.is_some(), long, "{shape:?}");
            let Some(b) = b else { continue };
            assert!(!is_long(b.seq, b.width()), "{shape:?}");
            assert!(b.heads >= 2 && a.heads.is_multiple_of(b.heads), "{b:?}");
            assert!(a.group().is_multiple_of(b.group()), "{shape:?}");
            assert_eq!(
                workspace(&a),
                slice_bytes(&a, backward_slice(&a)),
                "{shape:?}"
            );
        }
    }

    /// Every pair of a query and a key that it sees is in one tile, and what is summed over tiles is begun
    /// once, before anything is added, and given out once, behind everything.
    #[test]
    fn tiles_cover_every_pair_once_and_begin_and_end_every_sum() {
        for (seq, side) in [(1000, 256), (1000, 1000), (1024, 256), (7, 3), (300, 128)] {
            let a = attn([1, 2, 1, seq, 64]);
            let s = Slice {
                rows: 1,
                kv_heads: 1,
                side,
            };
            let mut pairs = vec![0; seq * seq];
            // Of each block: how many parts it has, and whether its sum was given out.
            let mut sums = [vec![(0, false); seq], vec![(0, false); seq]];
            for t in tiles(&a, s) {
                let part = t.part(&a, s);
                for query in t.query..t.query + t.queries {
                    for key in t.key..t.key + t.keys {
                        let seen = !part.causal || key - t.key <= query - t.query;
                        pairs[query * seq + key] += usize::from(seen);
                    }
                }
                for (which, at, first, last) in [
                    (0, t.query, t.first.of_queries, t.last.of_queries),
                    (1, t.key, t.first.of_keys, t.last.of_keys),
                ] {
                    let (parts, done) = &mut sums[which][at];
                    assert_eq!(*parts == 0, first, "{t:?}");
                    assert!(!*done, "{t:?} comes behind the end of its sum");
                    *parts += 1;
                    *done = last;
                }
            }
            for query in 0..seq {
                for key in 0..seq {
                    let want = usize::from(key <= query);
                    assert_eq!(
                        pairs[query * seq + key],
                        want,
                        "{seq}/{side}: {query}, {key}"
                    );
                }
            }
            for (parts, done) in sums.iter().flatten() {
                assert_eq!(*parts > 0, *done, "{seq}/{side}");
            }
        }
    }
}
