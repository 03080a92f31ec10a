// SPDX-License-Identifier: Apache-2.0
//! How large the image is, as `make image` has staged it.

use std::fs;
use std::path::Path;

use crate::report::Report;

pub(crate) fn measure(target: &Path, report: &mut Report) {
    for architecture in ["amd64", "arm64"] {
        let root = target.join("image-root").join(architecture);
        let size = size(&root);
        report.limited(&format!("image, {architecture}, uncompressed"), size as f64 / 1e6, "MB", 8.0);
    }
}

fn size(path: &Path) -> u64 {
    let metadata = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if !metadata.is_dir() {
        return metadata.len();
    }
    fs::read_dir(path).unwrap().map(|entry| size(&entry.unwrap().path())).sum()
}
