//! Choices of matrix products on a GPU, in a process of their own: measuring overwrites outputs, so
//! no other test may run beside it.

use std::collections::BTreeMap;

use lowtide_device::cuda::{Format, Gpu, PRODUCT_WORKSPACE, Plus, Product, Queue, product};
use lowtide_device::{Memory, memory};
use lowtide_units::Bytes;

const PRODUCT: Product = Product {
    rows: 200,
    cols: 136,
    inner: 328,
    a_transposed: false,
    b_transposed: true,
    a_gap: 0,
    d_gap: 0,
    input: Format::F32,
    output: Format::F32,
};

/// Small whole numbers: every order of additions gives the same, exact sum.
fn whole(n: usize, seed: usize) -> Vec<f32> {
    (0..n)
        .map(|i| ((i * 7919 + seed * 104_729) % 31) as f32 - 15.0)
        .collect()
}

#[test]
fn measured_choices_are_right_kept_and_restored() {
    let folder = std::env::temp_dir().join(format!("lowtide-products-{}", std::process::id()));
    // SAFETY: the only test of this process: no other thread reads or writes the environment.
    unsafe { std::env::set_var("LOWTIDE_CACHE", &folder) };
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(e) => {
            assert!(std::env::var_os("LOWTIDE_REQUIRE_CUDA").is_none(), "{e}");
            return;
        }
    };
    let q = Queue::new(&gpu).unwrap();
    let p = PRODUCT;
    let (x, w, c) = (
        whole(p.rows * p.inner, 1),
        whole(p.cols * p.inner, 2),
        whole(p.rows * p.cols, 3),
    );
    let want: Vec<f32> = (0..p.rows * p.cols)
        .map(|i| {
            let (row, col) = (i / p.cols, i % p.cols);
            let term = |k: usize| x[row * p.inner + k] * w[col * p.inner + k];
            c[i] + (0..p.inner).map(term).sum::<f32>()
        })
        .collect();
    let sizes = [x.len(), w.len(), c.len(), c.len(), PRODUCT_WORKSPACE / 4];
    let mut all = sizes.map(|n| {
        let bytes = 4 * n as u64;
        (Memory::cuda(&gpu, Bytes(bytes)).unwrap(), bytes)
    });
    let views = all.each_mut().map(|(memory, bytes)| memory.part(0, *bytes));
    let [mut xv, mut wv, mut cv, mut dv, mut ws] = views;
    memory::store(xv.again(), &x);
    memory::store(wv.again(), &w);
    memory::store(cv.again(), &c);
    let (xv, wv, cv) = (xv.into_src(), wv.into_src(), cv.into_src());
    let mut run = || {
        q.fill(dv.again(), 0xff);
        let plus = Plus::Other(cv);
        product(&q, &p, xv, wv, plus, dv.again(), None, ws.again()).unwrap();
        q.synchronize().unwrap();
        let mut d = vec![0.0f32; c.len()];
        memory::load(dv.src(), &mut d);
        assert!(d == want, "wrong numbers");
    };

    assert!(gpu.choices().is_empty());
    run();
    let by_rank = gpu.choices();
    assert_eq!(by_rank.len(), 2, "{by_rank:?}"); // and the version
    let files = || std::fs::read_dir(&folder).map_or(0, Iterator::count);
    assert_eq!(files(), 0, "what was not measured is not kept");

    gpu.set_tuning(true);
    run();
    let tuned = gpu.choices();
    assert!(by_rank.keys().eq(tuned.keys()));
    assert_eq!(files(), 2, "a table and its lock");
    run();
    gpu.set_tuning(false);
    run();
    assert_eq!(gpu.choices(), tuned);

    // A run's own choice comes before the measured one.
    gpu.set_choices(&by_rank).unwrap();
    run();
    assert_eq!(gpu.choices(), by_rank);

    let name = by_rank
        .keys()
        .find(|k| k.contains(" 200x136x328 "))
        .unwrap();
    let with = |name: &str, words: Vec<u64>| {
        let mut choices = tuned.clone();
        choices.insert(name.to_owned(), words);
        gpu.set_choices(&choices).unwrap_err().to_string()
    };
    let error = with(name, vec![9999, 0, 0, 0, 0, 0, 0, 0]);
    assert!(error.contains(name), "{error}");
    let error = with(name, vec![1]);
    assert!(error.contains(name), "{error}");
    let error = with("a product", vec![0; 8]);
    assert!(error.contains("a product"), "{error}");
    let error = with("cublasLt", vec![1]);
    assert!(error.contains("cublasLt"), "{error}");
    run();
    assert_eq!(gpu.choices(), by_rank, "a refused table changes nothing");

    // What is added to itself gains the product once, also the first time.
    gpu.set_choices(&BTreeMap::new()).unwrap();
    memory::store(dv.again(), &c);
    product(&q, &p, xv, wv, Plus::Itself, dv.again(), None, ws.again()).unwrap();
    q.synchronize().unwrap();
    let mut d = vec![0.0f32; c.len()];
    memory::load(dv.src(), &mut d);
    assert!(d == want, "added more than once");
    let _ = std::fs::remove_dir_all(&folder);
}
