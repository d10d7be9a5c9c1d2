//! A kill before each call that changes a directory: a name means a whole directory, the next start brings order, and
//! the same calls then lead to the same end.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use super::*;
use crate::output::steps::injected::{dead, live, set_exchanges, step};

const ALWAYS: &[&str] = &["a", "b"];

fn shelf<'a>(folder: &'a Folder, always: &'static [&'static str]) -> Shelf<'a> {
    Shelf {
        folder,
        holds: Holds::Checkpoint,
        always,
        earlier: |_| true,
    }
}

/// A directory of `text`: two files that belong together.
fn fill(text: &str) -> impl FnOnce(&Folder) -> Result<(), TrainError> + '_ {
    move |folder| {
        for name in ALWAYS {
            let file = folder.create_new(name)?;
            step(|| (&file).write_all(text.as_bytes())).map_err(TrainError::io(folder.path()))?;
        }
        // A model has named templates in a folder.
        folder.make_new("templates")?;
        let file = folder.make("templates")?.create_new("t")?;
        step(|| (&file).write_all(text.as_bytes())).map_err(TrainError::io(folder.path()))
    }
}

/// Every name with a whole directory, and its text; strangers' files by path.
fn whole(dir: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with('.') {
            continue;
        }
        if name.contains("kept") {
            for file in fs::read_dir(entry.path()).unwrap().flatten() {
                let path = format!("{name}/{}", file.file_name().into_string().unwrap());
                all.insert(path, fs::read_to_string(file.path()).unwrap());
            }
            continue;
        }
        let read = |f: &str| fs::read_to_string(entry.path().join(f));
        let (a, b) = (read("a").unwrap(), read("b").unwrap());
        assert_eq!(a, b, "{name} is half of each");
        assert_eq!(a, read("templates/t").unwrap(), "{name} is half of each");
        assert!(entry.path().join(MARK).is_file(), "{name} has no mark");
        all.insert(name.clone(), a);
        if let Ok(notes) = read("notes") {
            all.insert(format!("{name}/notes"), notes);
        }
    }
    all
}

fn litter(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().flatten();
    let names = names.map(|e| e.file_name().into_string().unwrap());
    names.filter(|n| n.starts_with('.')).collect()
}

/// What a run does with directories: new ones, one replaced that has somebody else's file in it, one given up.
fn run(folder: &Folder, shelf: &Shelf<'_>) -> Result<(), TrainError> {
    shelf.put("one", fill("1"))?;
    shelf.put("two", fill("2"))?;
    if let Some(two) = folder.sub("two")?
        && two.found("notes")? == Found::Nothing
    {
        // The user's, not ours: it is there whether we are killed or not.
        fs::write(two.at("notes"), "mine").unwrap();
    }
    shelf.put("two", fill("two again"))?;
    if folder.found("one")? == Found::Folder {
        shelf.give_up("one")?;
    }
    Ok(())
}

fn finished() -> BTreeMap<String, String> {
    [("two", "two again"), ("two/notes", "mine")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into()
}

#[test]
fn a_kill_at_any_call_leaves_whole_directories_and_the_next_start_goes_on() {
    let is_ours = |name: &str| matches!(name, "one" | "two");
    for (always, exchange) in [(ALWAYS, true), (&[], true), (ALWAYS, false), (&[], false)] {
        set_exchanges(exchange);
        let mut kills = 0;
        for calls in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let folder = Folder::open(dir.path()).unwrap();
            let shelf = shelf(&folder, always);
            live(Some(calls));
            let done = run(&folder, &shelf);
            let killed = dead();
            live(None);
            assert!(done.is_ok() || killed, "{done:?}");
            let found = whole(dir.path());
            for (name, text) in &found {
                let known = match name.as_str() {
                    "one" => text == "1",
                    "two" => text == "2" || text == "two again",
                    _ => text == "mine",
                };
                assert!(known, "{calls} calls: {name} is {text}");
            }
            let aside = dir.path().join(".two.old").exists();
            // Starts anew, and dies at each call of that, too.
            for again in 0.. {
                live(Some(again));
                let recovered = shelf.recover(is_ours);
                let died = dead();
                live(None);
                whole(dir.path());
                if recovered.is_ok() && !died {
                    break;
                }
                assert!(again < 40, "recovering does not end");
            }
            let after = whole(dir.path());
            assert!(!aside || after.contains_key("two"), "{calls} calls");
            assert_eq!(litter(dir.path()), [""; 0], "{calls} calls");
            for (name, text) in &found {
                let stays = after.contains_key(name) || text == "mine";
                assert!(stays, "{calls} calls: {name} is lost");
            }
            run(&folder, &shelf).unwrap();
            let mut end = whole(dir.path());
            // Somebody else's file that was moved once stays where it went.
            let notes: Vec<String> = end
                .keys()
                .filter(|k| k.contains("notes"))
                .cloned()
                .collect();
            assert!(
                !notes.is_empty(),
                "{calls} calls: a stranger's file is lost"
            );
            for name in notes {
                assert_eq!(end.remove(&name).unwrap(), "mine");
            }
            end.insert("two/notes".to_owned(), "mine".to_owned());
            assert_eq!(end, finished(), "{calls} calls");
            assert_eq!(litter(dir.path()), [""; 0]);
            if !killed {
                break;
            }
            kills += 1;
        }
        assert!(kills > 30, "{kills} kills");
    }
}

#[test]
fn without_an_exchange_the_old_one_is_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    let shelf = shelf(&folder, ALWAYS);
    shelf.put("one", fill("1")).unwrap();
    // Died between the two renames.
    fs::rename(dir.path().join("one"), dir.path().join(".one.old")).unwrap();
    shelf.recover(|n| n == "one").unwrap();
    assert_eq!(whole(dir.path())["one"], "1");
    // Died behind them.
    shelf.put("two", fill("2")).unwrap();
    fs::rename(dir.path().join("two"), dir.path().join(".one.old")).unwrap();
    shelf.recover(|n| n == "one").unwrap();
    assert_eq!(whole(dir.path())["one"], "1");
    assert_eq!(litter(dir.path()), [""; 0]);
}

#[test]
fn what_has_changed_since_or_is_not_ours_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    let shelf = shelf(&folder, &[]);
    shelf.put("m", fill("1")).unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("m/a"), "the user's own").unwrap();
    fs::create_dir(at("m/sub")).unwrap();
    fs::write(at("m/sub/x"), "deep").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", at("m/link")).unwrap();
    let told = shelf.put("m", fill("2")).unwrap();
    assert_eq!(told.len(), 3, "{told:?}");
    // Its name is taken in the new one.
    assert_eq!(
        fs::read_to_string(at("m.kept/a")).unwrap(),
        "the user's own"
    );
    assert_eq!(fs::read_to_string(at("m/a")).unwrap(), "2");
    assert_eq!(fs::read_to_string(at("m/sub/x")).unwrap(), "deep");
    assert!(at("m/link").is_symlink());
    // Once more, and a second of the same name.
    fs::write(at("m/a"), "another").unwrap();
    shelf.put("m", fill("3")).unwrap();
    assert_eq!(
        fs::read_to_string(at("m.kept/a")).unwrap(),
        "the user's own"
    );
    assert_eq!(fs::read_to_string(at("m.kept-1/a")).unwrap(), "another");
    assert_eq!(litter(dir.path()), [""; 0]);
}

#[test]
fn links_and_files_in_place_of_directories_are_refused_and_stay() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("a"), "precious").unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    let shelf = shelf(&folder, ALWAYS);
    for name in ["one", ".one.pending", ".one.given-up"] {
        let link = dir.path().join(name);
        std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
        if name == "one" {
            let error = shelf.give_up("one");
            assert!(matches!(error, Err(TrainError::Link { .. })), "{error:?}");
            assert!(link.is_symlink());
        }
        let error = match name {
            ".one.given-up" => shelf.give_up("one"),
            _ => shelf.put("one", fill("1")),
        };
        assert!(
            matches!(&error, Err(TrainError::Link { path }) if *path == link),
            "{error:?}"
        );
        // A link in the way of a save ends a start; one in the place of what was given up is only reported.
        let recovered = shelf.recover(|n| n == "one");
        assert_eq!(recovered.is_err(), name == ".one.pending");
        let told = recovered.map_or(0, |told| told.len());
        assert_eq!(told, usize::from(name == ".one.given-up"));
        fs::remove_file(&link).unwrap();
        shelf.recover(|n| n == "one").unwrap();
    }
    assert_eq!(
        fs::read_to_string(elsewhere.path().join("a")).unwrap(),
        "precious"
    );
    fs::write(dir.path().join("one"), "a file").unwrap();
    assert!(matches!(
        shelf.put("one", fill("1")),
        Err(TrainError::File { .. })
    ));
    assert_eq!(
        fs::read_to_string(dir.path().join("one")).unwrap(),
        "a file"
    );
}

#[test]
fn what_has_no_mark_and_is_not_lowtides_is_moved_and_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    for (earlier, moved) in [(true, false), (false, true)] {
        fs::create_dir(dir.path().join("n")).unwrap();
        fs::write(dir.path().join("n/a"), "a stranger's").unwrap();
        let shelf = Shelf {
            earlier: if earlier { |_| true } else { |_| false },
            ..shelf(&folder, ALWAYS)
        };
        let told = shelf.give_up("n").unwrap();
        assert_eq!(told.len(), usize::from(moved), "{told:?}");
        assert_eq!(dir.path().join("n.kept/a").exists(), moved);
        assert!(!dir.path().join("n").exists());
    }
}

#[test]
fn a_directory_that_was_left_aside_does_not_stop_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    set_exchanges(false);
    let shelf = shelf(&folder, ALWAYS);
    shelf.put("n", fill("1")).unwrap();
    fs::create_dir(dir.path().join(".n.old")).unwrap();
    fs::write(dir.path().join(".n.old/a"), "0").unwrap();
    shelf.put("n", fill("2")).unwrap();
    set_exchanges(true);
    assert_eq!(fs::read_to_string(dir.path().join("n/a")).unwrap(), "2");
    assert!(!dir.path().join(".n.old").exists());
}
