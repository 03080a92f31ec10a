// SPDX-License-Identifier: Apache-2.0
//! What the targets share: the planted defect, which inputs are built upon, and a mutation of text that consists of words,
//! numbers and separators, as all our text formats do.
//!
//! libFuzzer's own mutations work on bytes and mostly destroy such a text before they change what it says. A quarter of
//! the inputs is left to them.

use std::ops::Range;
use std::sync::OnceLock;

use libfuzzer_sys::Corpus;

/// Values at which arithmetic goes wrong.
const NUMBERS: [&str; 7] =
    ["0", "1", "65535", "65536", "4294967295", "9223372036854775808", "18446744073709551615"];
/// The kinds of change that concern a number, which is where bugs are.
const NUMBER: Range<usize> = 4..7;
/// Most copies of one word.
const REPEAT_MAX: usize = 64;

static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();

/// The planted defect: panics when all of `conditions` hold. Each of them is a branch of its own, as in code that goes
/// wrong only several conditions deep; the compiler would make one of them all.
pub fn seeded_bug(conditions: &[bool]) {
    if cfg!(feature = "seeded-bug") && conditions.iter().all(|condition| *std::hint::black_box(condition)) {
        panic!("seeded");
    }
}

/// Whether an input is worth changing further: one that is accepted. What is refused is tried all the same and is one
/// change away from it; kept, the many ways to be refused would get nearly all of the time.
pub fn keep(accepted: bool) -> Corpus {
    if accepted { Corpus::Keep } else { Corpus::Reject }
}

/// Change a text in the first `size` bytes of `data`, for `libfuzzer_sys::fuzz_mutator`; the new size.
pub fn mutate_text(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut random = Random(u64::from(seed));
    let size = begin_anew(data, size, max_size, &mut random);
    let changed = if random.below(4) == 0 { None } else { change(&data[..size], &mut random) };
    match changed {
        Some(text) if text.len() <= max_size => {
            data[..text.len()].copy_from_slice(&text);
            text.len()
        }
        _ => libfuzzer_sys::fuzzer_mutate(data, size, max_size),
    }
}

/// The same for anything else than text.
pub fn mutate_bytes(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let size = begin_anew(data, size, max_size, &mut Random(u64::from(seed)));
    libfuzzer_sys::fuzzer_mutate(data, size, max_size)
}

/// One time in four, put one of the committed inputs in place of `data`: they say what inputs look like, and would get
/// ever less time as more and stranger ones are found.
fn begin_anew(data: &mut [u8], size: usize, max_size: usize, random: &mut Random) -> usize {
    let seeds = SEEDS.get_or_init(committed);
    if random.below(4) > 0 {
        return size;
    }
    match seeds.get(random.below(seeds.len())) {
        Some(seed) if seed.len() <= max_size => {
            data[..seed.len()].copy_from_slice(seed);
            seed.len()
        }
        _ => size,
    }
}

/// The inputs in the directory that `FUZZ_SEEDS` names; without one, none.
fn committed() -> Vec<Vec<u8>> {
    let files = std::env::var_os("FUZZ_SEEDS").and_then(|dir| std::fs::read_dir(dir).ok());
    let read = |file: std::fs::DirEntry| std::fs::read(file.path()).ok();
    let mut seeds: Vec<_> = files.into_iter().flatten().flatten().filter_map(read).collect();
    // In one order everywhere, so that `-seed` repeats a run.
    seeds.sort();
    seeds
}

fn change(text: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let words = words(text);
    let kind = random.below(8);
    let is_number = |word: &&Range<usize>| text[word.start].is_ascii_digit();
    let candidates: Vec<_> = words.iter().filter(|word| !NUMBER.contains(&kind) || is_number(word)).collect();
    let word = (*candidates.get(random.below(candidates.len()))?).clone();
    let item = item(text, word.start);
    let other = words[random.below(words.len())].clone();
    let (place, new) = match kind {
        // One more item of a list, one less.
        0 => (item.end..item.end, [separator(text, &item), &text[item]].concat()),
        1 => (item.start..(item.end + 1).min(text.len()), Vec::new()),
        2 => (word.clone(), text[word].repeat(2 + random.below(REPEAT_MAX))),
        3 => (word, text[other].to_vec()),
        _ if NUMBER.contains(&kind) => (word.clone(), number(&text[word], random)),
        _ => (word, Vec::new()),
    };
    Some([&text[..place.start], &new, &text[place.end..]].concat())
}

/// Another number: one at which arithmetic goes wrong, the next or the previous one.
fn number(old: &[u8], random: &mut Random) -> Vec<u8> {
    let old: Option<u64> = str::from_utf8(old).ok().and_then(|text| text.parse().ok());
    match (random.below(3), old) {
        (0, Some(old)) => old.saturating_add(1).to_string().into_bytes(),
        (1, Some(old)) => old.saturating_sub(1).to_string().into_bytes(),
        _ => NUMBERS[random.below(NUMBERS.len())].into(),
    }
}

/// Runs of letters and digits; each other byte is one by itself.
fn words(text: &[u8]) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    for (at, byte) in text.iter().enumerate() {
        match words.last_mut() {
            Some(last) if is_word(*byte) && is_word(text[last.start]) => last.end = at + 1,
            _ => words.push(at..at + 1),
        }
    }
    words
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// What is around `at`, between the separators of a list.
fn item(text: &[u8], at: usize) -> Range<usize> {
    let start = text[..at].iter().rposition(|b| b",;\n{[=".contains(b)).map_or(0, |i| i + 1);
    let end = text[at..].iter().position(|b| b",;\n}]".contains(b)).map_or(text.len(), |i| at + i);
    start..end
}

/// What separates `item` from the one before or after it.
fn separator<'a>(text: &'a [u8], item: &Range<usize>) -> &'a [u8] {
    match (item.start.checked_sub(1).map(|i| text[i]), text.get(item.end)) {
        (Some(b';'), _) | (_, Some(b';')) => b";",
        (Some(b'\n'), _) => b"\n",
        _ => b",",
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): of one small seed, the first numbers are independent already.
struct Random(u64);

impl Random {
    /// A number below `end`; 0 for none.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let z = z ^ (z >> 31);
        if end == 0 { 0 } else { (z % end as u64) as usize }
    }
}
