// SPDX-License-Identifier: Apache-2.0
//! Figures with their limits, as a table and as JSON.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// All figures so far.
#[derive(Default)]
pub(crate) struct Report(Vec<Figure>);

#[derive(Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    limit: Option<f64>,
    ok: bool,
}

impl Report {
    /// A figure that must not be over `limit`.
    pub(crate) fn limited(&mut self, name: &str, value: f64, unit: &'static str, limit: f64) {
        self.0.push(Figure { name: name.to_owned(), value, unit, limit: Some(limit), ok: value <= limit });
    }

    /// A figure for information.
    pub(crate) fn note(&mut self, name: &str, value: f64, unit: &'static str) {
        self.0.push(Figure { name: name.to_owned(), value, unit, limit: None, ok: true });
    }

    /// Write `report.json` into `dir`.
    pub(crate) fn write(&self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("report.json"), serde_json::to_string_pretty(&self.0).unwrap() + "\n").unwrap();
    }

    /// Print the table; whether all is well.
    #[allow(clippy::print_stdout, reason = "the table is what this program is for")]
    pub(crate) fn print(&self) -> bool {
        println!("{:<46} {:>10} {:<9} {:>8}", "", "value", "unit", "limit");
        for Figure { name, value, unit, limit, ok } in &self.0 {
            let limit = limit.map_or_else(String::new, |limit| limit.to_string());
            println!("{name:<46} {value:>10.2} {unit:<9} {limit:>8}{}", if *ok { "" } else { "  OVER" });
        }
        self.0.iter().all(|figure| figure.ok)
    }
}

/// The middle of `values`.
pub(crate) fn median(values: Vec<f64>) -> f64 {
    percentile(values, 0.5)
}

/// The value that `share` of `values` are not above.
pub(crate) fn percentile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * share).ceil() as usize;
    values[rank.saturating_sub(1)]
}
