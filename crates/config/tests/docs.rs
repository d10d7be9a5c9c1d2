//! The page of keys in `docs/` is what the list of keys says.

use std::fs;
use std::path::Path;

use lowtide_config::reference_markdown;

/// After a change of a key: `LOWTIDE_WRITE_DOCS=1 cargo test --release -p lowtide-config --test docs`.
#[test]
fn the_page_of_keys_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().expect("this package's folder");
    let path = root.join("../../docs/run-file.md");
    let page = reference_markdown();
    if std::env::var_os("LOWTIDE_WRITE_DOCS").is_some() {
        fs::write(&path, &page).expect("the page can be written");
    }
    let written = fs::read_to_string(&path).expect("docs/run-file.md");
    let line = page.lines().zip(written.lines()).position(|(a, b)| a != b);
    assert!(page == written, "docs/run-file.md is out of date, from line {line:?} (counted from 0)");
}
