//! The tables against bytes counted by hand, and what every table must keep.

use super::*;
use crate::{PIECE_ALIGN, Param};

fn adamw(moments: Moments) -> Optimizer {
    Optimizer {
        name: OptimizerName::AdamW,
        moments,
    }
}

fn param(elements: u64, cols: u64) -> Param {
    Param {
        frozen: false,
        name: "p".into(),
        unit: 0,
        elements,
        cols,
        decay: true,
    }
}

#[test]
fn arrays_lie_one_behind_the_other() {
    for optimizer in Optimizer::all() {
        for precision in [Dtype::Bf16, Dtype::F32] {
            let arrays = optimizer.layout(precision, PIECE_ALIGN);
            let mut end = 0;
            for array in &arrays {
                assert_eq!(array.start, end, "{optimizer:?} {array:?}");
                // Whatever is loaded sixteen bytes at a time starts at a multiple of them.
                assert!(array.start.is_multiple_of(64), "{optimizer:?} {array:?}");
                end = array.range().end;
            }
            assert_eq!(end, optimizer.state_bytes(precision, PIECE_ALIGN));
            let names: std::collections::BTreeSet<_> = optimizer
                .roles(precision)
                .map(|spec| spec.role.name())
                .collect();
            assert_eq!(names.len(), arrays.len() + 1, "a role has one array");
        }
    }
}

#[test]
fn state_has_the_bytes_of_its_numbers() {
    for (moments, each) in [
        (Moments::F32, 8 * 2048),
        (Moments::Bf16, 4 * 2048),
        (Moments::Int8, 2 * 2048 + 2 * 4 * 16),
    ] {
        let bytes = |precision| adamw(moments).state_bytes(precision, 2048);
        assert_eq!(bytes(Dtype::F32), each);
        assert_eq!(bytes(Dtype::Bf16), each + 2 * 2048);
    }
}

#[test]
fn an_update_moves_what_it_must() {
    let moved = |name| Moments::ALL.map(|moments| Optimizer { name, moments }.moved_each());
    assert_eq!(moved(OptimizerName::AdamW), [26.0, 18.0, 14.125]);
    assert_eq!(moved(OptimizerName::Lion), [18.0, 14.0, 12.0625]);
    assert_eq!(adamw(Moments::F32).bytes_each(Dtype::Bf16), 12.0);
    assert_eq!(adamw(Moments::F32).bytes_each(Dtype::F32), 12.0);
    assert_eq!(adamw(Moments::Int8).bytes_each(Dtype::Bf16), 6.0625);
}

#[test]
fn entries_follow_the_parameter() {
    let optimizer = adamw(Moments::Int8);
    let find = |name| {
        let mut roles = optimizer.roles(Dtype::Bf16);
        *roles.find(|spec| spec.role.name() == name).unwrap()
    };
    let p = param(3 * 130, 130);
    assert_eq!(p.rows(), 3);
    assert_eq!(find("weight").shape(&p), [3, 130]);
    assert_eq!(find("first_moment").shape(&p), [3, 130]);
    assert_eq!(find("second_scale").shape(&p), [1, 4]);
    assert_eq!(find("second_scale").entries(&p), 4);
    let scales = optimizer.array(Dtype::Bf16, 4096, Role::new("first_scale"));
    let scales = scales.unwrap();
    assert_eq!(scales.start, 2 * 4096 + 2 * 4096);
    assert_eq!((scales.entries(), scales.first(1024)), (32, 8));
    let weight = optimizer.array(Dtype::Bf16, 4096, Role::WEIGHT).unwrap();
    assert_eq!((weight.start, weight.bytes), (0, 8192));
    assert!(
        adamw(Moments::F32)
            .array(Dtype::F32, 4096, Role::REMAINDER)
            .is_none()
    );
}

#[test]
fn names_are_spelled_one_way() {
    for &name in OptimizerName::ALL {
        // Serde's spelling is the variant's in lower case.
        assert_eq!(name.name(), format!("{name:?}").to_lowercase());
        assert!(!OptimizerName::PLANNED.contains(&name.name()));
    }
}
