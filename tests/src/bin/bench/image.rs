//! What the initramfs grows by: the same guest and kernel, MODULES=most, with and without.

use latchkey_tests::initramfs::Weight;
use latchkey_tests::native;
use serde_json::{Value, json};

use crate::{Bench, Failure, clevis};

pub fn measure(bench: &Bench) -> Result<Value, Failure> {
    let plain = native::boot_files(&bench.plain)?.weigh()?;
    let latchkey = bench.bound.boot.weigh()?;
    let clevis = clevis::bound(&bench.with_clevis)?.boot.weigh()?;
    Ok(json!({
        "plain": figures(plain, None),
        "latchkey": figures(latchkey, Some(plain)),
        "clevis": figures(clevis, Some(plain)),
    }))
}

/// The weight of an image, or what it weighs more than another.
fn figures(weight: Weight, than: Option<Weight>) -> Value {
    let more = |all: usize, of_other: &dyn Fn(Weight) -> usize| all - than.map_or(0, of_other);
    json!({
        "compressed": more(weight.compressed, &|other| other.compressed),
        "content": more(weight.content, &|other| other.content),
        "members": more(weight.members, &|other| other.members),
    })
}
