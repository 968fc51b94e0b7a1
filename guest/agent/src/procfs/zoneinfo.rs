//! `/proc/zoneinfo`: what the kernel keeps back.

use plimsoll_procfs::{number, words};

/// Pages that the kernel's `calculate_totalreserve_pages` (`mm/page_alloc.c`) comes to: for each zone the largest
/// number of its `protection` and its high watermark, at most what the zone manages. `None` when the text has no
/// zone with all three.
pub(crate) fn reserve_pages(text: &[u8]) -> Option<u64> {
    let mut sum = None;
    let mut zone = Zone::default();
    for line in text.split(|byte| *byte == b'\n') {
        let mut words = words(line);
        match words.next() {
            Some(b"Node") => {
                add(&mut sum, &zone);
                zone = Zone::default();
            }
            // With a colon it is another one: of the lists of a CPU.
            Some(b"high") => zone.high = words.next().and_then(number),
            Some(b"managed") => zone.managed = words.next().and_then(number),
            Some(b"protection:") => zone.protection = words.filter_map(protection).max(),
            _ => {}
        }
    }
    add(&mut sum, &zone);
    sum
}

/// What is known of the zone that is being read.
#[derive(Default)]
struct Zone {
    high: Option<u64>,
    managed: Option<u64>,
    protection: Option<u64>,
}

fn add(sum: &mut Option<u64>, zone: &Zone) {
    if let Zone { high: Some(high), managed: Some(managed), protection: Some(protection) } = *zone {
        let kept = protection.saturating_add(high).min(managed);
        *sum = Some(sum.unwrap_or(0).saturating_add(kept));
    }
}

/// One of `(0, 3019, 11211,`.
fn protection(word: &[u8]) -> Option<u64> {
    let word = word.strip_prefix(b"(").unwrap_or(word);
    let word = word.strip_suffix(b")").or_else(|| word.strip_suffix(b",")).unwrap_or(word);
    number(word)
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::reserve_pages;

    /// Linux 4.4, one zone with CPU lists behind it.
    const LINUX_4_4: &str = "\
Node 0, zone      DMA
  pages free     3973
        min      67
        low      83
        high     100
        scanned  0
        spanned  4095
        present  3998
        managed  3977
    nr_free_pages 3973
        protection: (0, 1941, 1941, 1941)
  pagesets
    cpu: 0
              count: 0
              high:  7777
              batch: 1
  vm stats threshold: 4
  all_unreclaimable: 1
  start_pfn:         1
Node 0, zone    DMA32
  pages free     29120
        min      8364
        low      10455
        high     12546
        spanned  520160
        present  520160
        managed  499512
        protection: (0, 0, 0, 0)
  pagesets
    cpu: 0
              count: 91
              high:  186
              batch: 31
";

    /// Linux 6.18: further watermarks, the protection at the end, a zone without memory.
    const LINUX_6_18: &str = "\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 118851
  pages free     3840
        boost    0
        min      22
        low      27
        high     32
        promo    37
        spanned  4095
        present  3998
        managed  3840
        cma      0
        protection: (0, 3019, 11211, 11211, 11211)
      nr_free_pages 3840
  pagesets
    cpu: 0
              count:    0
              high:     0
              batch:    1
              high_min: 13
              high_max: 240
Node 0, zone  Movable
  pages free     0
        boost    0
        min      32
        low      32
        high     32
        promo    32
        spanned  0
        present  0
        managed  0
        cma      0
        protection: (0, 0, 0, 0, 0)
Node 0, zone   Normal
  pages free     846000
        high     18498
        managed  2097152
        protection: (0, 0, 0, 0, 0)
";

    #[test]
    fn linux_4_4_keeps_both_zones_share() {
        assert_eq!(reserve_pages(LINUX_4_4.as_bytes()), Some(100 + 1941 + 12_546));
    }

    #[test]
    fn a_zone_keeps_no_more_than_it_has() {
        assert_eq!(reserve_pages(LINUX_6_18.as_bytes()), Some(3840 + 18_498));
    }

    #[test]
    fn nothing_is_made_up() {
        assert_eq!(reserve_pages(b""), None);
        assert_eq!(reserve_pages(b"Node 0, zone DMA\n high 7\n managed 9\n"), None);
    }

    /// The kernel's own numbers must be there on the machine that runs the test.
    #[test]
    fn this_machine_has_a_reserve_below_its_memory() {
        let text = std::fs::read("/proc/zoneinfo").expect("Linux");
        let pages = reserve_pages(&text).expect("has zones");
        assert!(pages > 0 && pages < 1 << 40, "{pages}");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "(Node|high|managed|protection:|[(), 0-9]{0,12}|\n|.){0,60}") {
            let _ = reserve_pages(text.as_bytes());
        }
    }
}
