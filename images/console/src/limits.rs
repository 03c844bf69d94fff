//! The maxima of one answer; those of its size stand in `dagger_images::limits`. Called by this
//! package only.

use std::time::Duration;

/// How long the request may take to arrive, and its answer to be taken.
pub const WORD_WAIT_MAX: Duration = Duration::from_secs(5);
