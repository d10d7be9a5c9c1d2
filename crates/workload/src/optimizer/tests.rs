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
        kind: crate::ParamKind::Own,
        name: "p".into(),
        unit: 0,
        elements,
        cols,
        parts: Vec::new(),
        decay: true,
    }
}

#[test]
fn arrays_lie_one_behind_the_other() {
    let params = [param(3 * 130, 130), param(1000, 1), param(7 * 12, 12)];
    for optimizer in Optimizer::all() {
        for precision in [Dtype::Bf16, Dtype::F32] {
            let arrays = optimizer.layout(precision, PIECE_ALIGN, &params);
            let mut end = 0;
            for array in &arrays {
                assert_eq!(array.start, end, "{optimizer:?} {array:?}");
                // Whatever is loaded sixteen bytes at a time starts at a multiple of them.
                assert!(array.start.is_multiple_of(64), "{optimizer:?} {array:?}");
                end = array.range().end;
            }
            assert_eq!(end, optimizer.state_bytes(precision, PIECE_ALIGN, &params));
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
        let bytes = |precision| adamw(moments).state_bytes(precision, 2048, &[]);
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
    let scales = optimizer.array(Dtype::Bf16, 4096, &[], Role::new("first_scale"));
    let scales = scales.unwrap();
    assert_eq!(scales.start, 2 * 4096 + 2 * 4096);
    assert_eq!((scales.entries(), scales.first(1024, &[])), (32, 8));
    let weight = optimizer
        .array(Dtype::Bf16, 4096, &[], Role::WEIGHT)
        .unwrap();
    assert_eq!((weight.start, weight.bytes), (0, 8192));
    assert!(
        adamw(Moments::F32)
            .array(Dtype::F32, 4096, &[], Role::REMAINDER)
            .is_none()
    );
}

/// Rows and columns of each tensor on its own, packed in the order of the parameters; a vector has a row for
/// each number and no column.
#[test]
fn rows_and_columns_follow_the_tensors() {
    let optimizer = Optimizer {
        name: OptimizerName::Adafactor,
        moments: Moments::F32,
    };
    let fused = Param {
        parts: vec![2, 5],
        ..param(7 * 12, 12)
    };
    let params = [param(20, 1), fused, param(3 * 130, 130)];
    assert_eq!(params[1].tensors().collect::<Vec<_>>(), [0..2, 2..7]);
    assert_eq!(params[2].tensors().next(), Some(0..3));
    assert_eq!(params[2].tensors().count(), 1);
    let array = |name| {
        let array = optimizer.array(Dtype::Bf16, 2048, &params, Role::new(name));
        array.expect("the role")
    };
    let (rows, columns) = (array("second_moment_rows"), array("second_moment_columns"));
    let entries = |a: &StateArray| params.each_ref().map(|p| a.spec.entries(p));
    assert_eq!(entries(&rows), [20, 7, 3]);
    assert_eq!(entries(&columns), [0, 24, 130]);
    let names = |p| optimizer.roles_of(Dtype::F32, p).map(|s| s.role.name());
    assert!(names(&params[0]).eq(["weight", "second_moment_rows"]));
    assert_eq!(names(&params[1]).last(), Some("second_moment_columns"));
    // Wherever the numbers lie.
    let firsts = |a: &StateArray| [0, 1, 2].map(|i| a.first(9999, &params[..i]));
    assert_eq!(firsts(&rows), [0, 20, 27]);
    assert_eq!(firsts(&columns), [0, 0, 24]);
    assert_eq!((rows.start, rows.bytes), (2 * 2048, 4 * 32));
    assert_eq!((columns.start, columns.bytes), (2 * 2048 + 4 * 32, 4 * 160));
    assert_eq!(
        optimizer.state_bytes(Dtype::Bf16, 2048, &params),
        2 * 2048 + 4 * (32 + 160)
    );
    // Scratch of the largest tensor: 3 rows of 130, in one band and two tiles.
    let parts = Factoring { rows: 3, cols: 130 }.parts();
    assert_eq!(parts, [64, 576, 64, 64, 576]);
    assert_eq!(optimizer.scratch_bytes(&params), 1344);
    assert!(optimizer.is_shaped());
    assert!(Optimizer::all().all(|o| o.is_shaped() == (o.scratch_bytes(&params) > 0)));
    assert_eq!(optimizer.moved_each(), 14.0);
    assert!((optimizer.cost_each() / adamw(Moments::F32).cost_each() - 0.83).abs() < 0.01);
}

#[test]
fn names_are_spelled_one_way() {
    for &name in OptimizerName::ALL {
        // Serde's spelling is the variant's in lower case.
        assert_eq!(name.name(), format!("{name:?}").to_lowercase());
        assert!(!OptimizerName::PLANNED.contains(&name.name()));
    }
}
