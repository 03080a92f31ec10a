// SPDX-License-Identifier: Apache-2.0
//! Named points after each step that changes a file, where a fault test may stop the process.
//!
//! Owns the names; must never do anything in a build without the feature `fault-injection`.

/// Called with the name of each point that is reached.
#[cfg(feature = "fault-injection")]
pub static HOOK: std::sync::OnceLock<fn(&'static str)> = std::sync::OnceLock::new();

/// The points of one operation on a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Points {
    /// Half of the bytes are in the temporary file.
    pub(crate) half: &'static str,
    /// All of them are.
    pub(crate) write: &'static str,
    /// They are on the disk.
    pub(crate) sync: &'static str,
    /// The name leads to them; in a removal, to nothing.
    pub(crate) rename: &'static str,
    /// What the name led to before is gone.
    pub(crate) unlink: &'static str,
    /// The directory is on the disk.
    pub(crate) dirsync: &'static str,
}

macro_rules! points {
    (
        writes { $($constant:ident $name:literal: $doc:literal;)* }
        deletes { $($delete:ident $gone:literal: $what:literal;)* }
    ) => {
        $(
            #[doc = $doc]
            pub(crate) const $constant: Points = Points {
                half: concat!("install:", $name, ":half"),
                write: concat!("install:", $name, ":write"),
                sync: concat!("install:", $name, ":sync"),
                ..removal!($name)
            };
        )*
        $(
            #[doc = $what]
            pub(crate) const $delete: Points = removal!($gone);
        )*
        /// The name of every point, so that a test can tell that it knows all of them.
        pub const POINTS: &[&str] = &[
            $($constant.half, $constant.write, $constant.sync, $constant.rename, $constant.unlink, $constant.dirsync,)*
            $($delete.rename, $delete.unlink, $delete.dirsync,)*
        ];
    };
}

macro_rules! removal {
    ($name:literal) => {
        Points {
            half: "",
            write: "",
            sync: "",
            rename: concat!("install:", $name, ":rename"),
            unlink: concat!("install:", $name, ":unlink"),
            dirsync: concat!("install:", $name, ":dirsync"),
        }
    };
}

points! {
    writes {
        BINARY "binary": "The plugin.";
        ENTRY "entry": "A file with our entry.";
        STRIP "strip": "A file without our entry again.";
    }
    deletes {
        DELETE "delete": "A file that goes: ours, or one that became a list.";
        DELETE_BINARY "delete-binary": "The plugin that goes.";
    }
}

/// Say that `name` is reached.
#[inline]
pub(crate) fn point(name: &'static str) {
    #[cfg(feature = "fault-injection")]
    if let Some(hook) = HOOK.get() {
        hook(name);
    }
    #[cfg(not(feature = "fault-injection"))]
    let _ = name;
}
