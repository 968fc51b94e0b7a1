//! Events, one a line.

use plimsoll_api::http::Event;

use super::{clean, time};

/// `2026-11-21T11:24:36Z      17  web           target        from 256M to 512M: ...`
pub(crate) fn line(event: &Event) -> String {
    let vm = event.vm.as_ref().map_or("-", |vm| vm.as_str());
    format!(
        "{} {:>6}  {vm:<12}  {:<17}  {}",
        time::utc(event.wall_us),
        event.seq,
        clean(&event.kind),
        clean(&event.text)
    )
}
