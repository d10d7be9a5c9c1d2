//! Answers made token by token: logits of every family's tiny decoder, at every position, against the plain f64
//! model of whole documents.

#[path = "driver/mod.rs"]
mod driver;
#[path = "reference/mod.rs"]
mod reference;

use driver::{Driver, Row, options, tiny_llama, tiny_shapes};
use lowtide_device::Make;
use lowtide_model::{Decoder, Decoding, ModelError, Options, hf_tensors};
use lowtide_workload::{Dtype, ModelShape};

const HOW: Decoding = Decoding {
    places: 3,
    keys: 9,
    rows: 8,
};

/// The driver's weights under their file names and in the file's layout.
fn by_name(driver: &Driver) -> reference::Tensors {
    let of = |tensor: lowtide_model::HfTensor| {
        let all = driver.weight(tensor.param);
        let range = tensor.elements();
        let own = &all[range.start as usize..range.end as usize];
        let mut values = vec![f64::NAN; own.len()];
        for (i, &value) in (0..).zip(own) {
            values[tensor.in_file(i) as usize] = f64::from(value);
        }
        (tensor.name, values)
    };
    hf_tensors(&driver.shape).into_iter().map(of).collect()
}

/// Documents of a vocabulary, the longest of as many tokens as a place has.
fn documents(vocab: u32) -> Vec<Vec<usize>> {
    let token = |d: usize, i: usize| (d * 11 + i * 7 + i * i + 3) % vocab as usize;
    let lengths = [5, 9, 1, 9, 3, 8, 7];
    let of = |(d, n): (usize, usize)| (0..n).map(|i| token(d, i)).collect();
    lengths.into_iter().enumerate().map(of).collect()
}

/// A document in a place, and how many of its tokens are kept.
struct Making {
    document: usize,
    done: usize,
}

/// Runs all documents, `tokens` of each place in a step, and compares each row of logits.
fn check(shape: &ModelShape, dtype: Dtype, limit: f64, tokens: impl Fn(usize, usize) -> usize) {
    let mut driver = Driver::decoding(shape, &options(dtype, 1, 1), HOW, 2);
    let (tensors, vocab) = (by_name(&driver), shape.vocab as usize);
    let documents = documents(shape.vocab);
    let want: Vec<_> = documents
        .iter()
        .map(|d| reference::logits(shape, &tensors, d))
        .collect();
    let mut waiting = 0..documents.len();
    let mut places: Vec<Option<Making>> = (0..HOW.places).map(|_| None).collect();
    let mut seen = 0;
    for step in 0.. {
        // A place whose document has ended is taken by the next one, and not cleared.
        for place in &mut places {
            if place
                .as_ref()
                .is_none_or(|m| m.done == documents[m.document].len())
            {
                *place = waiting.next().map(|document| Making { document, done: 0 });
            }
        }
        let (mut marked, mut others, mut compared) = (Vec::new(), Vec::new(), Vec::new());
        for (p, making) in places.iter_mut().enumerate() {
            let Some(making) = making else { continue };
            let document = &documents[making.document];
            let end = document.len().min(making.done + tokens(step, p));
            let row = |i: usize| Row {
                token: document[i] as i32,
                position: i as i32,
                place: p as i32,
            };
            others.extend((making.done..end - 1).rev().map(row));
            marked.push(row(end - 1));
            compared.push((making.document, end - 1));
            making.done = end;
        }
        if marked.is_empty() {
            break;
        }
        let n = marked.len();
        let mut rows = [marked, others].concat();
        let padding = Row {
            token: 0,
            position: 0,
            place: -1,
        };
        rows.resize(rows.len().next_power_of_two(), padding);
        let logits = driver.decode(&rows, n);
        for (got, (document, at)) in logits.chunks(vocab).zip(compared) {
            seen += 1;
            for (g, w) in got.iter().zip(&want[document][at]) {
                let name = &shape.name;
                assert!(
                    (f64::from(*g) - w).abs() < limit,
                    "{name}, document {document} at {at}: {g} for {w}"
                );
            }
        }
    }
    assert!(seen > 12, "{seen} rows of logits");
}

#[test]
fn logits_of_kept_keys_are_those_of_whole_documents() {
    for shape in tiny_shapes() {
        check(&shape, Dtype::F32, 1e-4, |_, _| 1);
        // Prompts in parts of several lengths, beside answers.
        check(&shape, Dtype::F32, 1e-4, |step, place| {
            1 + (step * 2 + place) % 3 % 2 * 2
        });
    }
}

#[test]
fn a_step_that_cannot_be_is_refused() {
    let refused =
        |how: Decoding| match Decoder::decoding(&tiny_llama(), &options(Dtype::F32, 1, 1), how) {
            Err(ModelError::Dimensions { what, .. }) => what,
            other => panic!("{other:?}"),
        };
    assert_eq!(refused(Decoding { rows: 6, ..HOW }), "rows of a step");
    assert_eq!(refused(Decoding { rows: 2, ..HOW }), "rows of a step");
    assert_eq!(refused(Decoding { keys: 33, ..HOW }), "sequence length");
    assert_eq!(refused(Decoding { places: 0, ..HOW }), "micro-batch");
    // Longer than a block's shared memory; the CPU device has no such limit.
    let mut shape = tiny_llama();
    shape.head_dim = 3042;
    for (make, fits) in [(Make::Cpu, true), (Make::Cuda, false)] {
        let options = Options {
            make,
            ..options(Dtype::F32, 1, 1)
        };
        let made = Decoder::decoding(&shape, &options, HOW);
        assert_eq!(made.is_ok(), fits, "{make:?}: {:?}", made.err());
    }
}
