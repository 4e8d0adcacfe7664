//! Which memory of a process holds what it wrote: `/proc/PID/maps` (proc_pid_maps(5)).
//!
//! Nothing here calls the C library or panics: the guardian reads its maps while it wipes them.

/// The ranges of the mappings that hold memory of the process alone, in `maps`. A file that is mapped to be written is left as
/// it is.
pub(crate) fn wipeable(maps: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut rest = maps;
    let lines = std::iter::from_fn(move || {
        let (line, tail) = split_line(rest)?;
        rest = tail;
        Some(line)
    });
    lines.filter_map(range)
}

/// A line without its end, and the rest; `None` without a whole line.
fn split_line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut at = 0;
    while *text.get(at)? != b'\n' {
        at += 1;
    }
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// Of a line such as `7f00000-7f01000 rw-p 00000000 00:00 0 [heap]`.
fn range(line: &[u8]) -> Option<(usize, usize)> {
    let (start, rest) = hexadecimal(line)?;
    let (end, rest) = hexadecimal(rest.get(1..)?)?;
    let writable = *rest.get(2)? == b'w';
    let private = *rest.get(4)? == b'p';
    (writable && (private || is_memory(rest))).then_some((start, end))
}

/// Whether a shared mapping is of no file that has a name.
fn is_memory(rest: &[u8]) -> bool {
    const KINDS: [&[u8]; 3] = [b" /memfd:", b" /dev/zero", b" /secretmem"];
    let mut at = 0;
    while let Some(tail) = rest.get(at..) {
        if KINDS.iter().any(|kind| tail.starts_with(kind)) {
            return true;
        }
        if tail.is_empty() {
            return false;
        }
        at += 1;
    }
    false
}

fn hexadecimal(text: &[u8]) -> Option<(usize, &[u8])> {
    let (mut value, mut at) = (0usize, 0);
    while let Some(digit) = text.get(at).and_then(|byte| char::from(*byte).to_digit(16)) {
        value = value.wrapping_mul(16).wrapping_add(digit as usize);
        at += 1;
    }
    (at > 0).then_some((value, text.get(at..)?))
}
