//! Requests as front ends send them, and as none may.

use proptest::prelude::*;

use super::*;

fn fd() -> OwnedFd {
    rustix::pipe::pipe().unwrap().0
}

fn parse(code: u32, payload: Vec<u8>, fds: usize) -> Result<Request, WireError> {
    Request::parse(Message { code, flags: 1, payload, fds: (0..fds).map(|_| fd()).collect() })
}

fn words(list: &[u32]) -> Vec<u8> {
    list.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(list: &[u64]) -> Vec<u8> {
    list.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut payload = words(&[u32::try_from(regions.len()).unwrap(), 0]);
    regions.iter().for_each(|region| payload.extend(longs(region)));
    payload
}

proptest! {
    #[test]
    fn arbitrary_messages_never_panic(code in 0u32..60, payload in prop::collection::vec(any::<u8>(), 0..400), fds in 0usize..9) {
        if let Ok(request) = parse(code, payload.clone(), fds) {
            // What was understood is said again in the same bytes, but for unused room, and means the same.
            let again = request.payload();
            prop_assert!(again.len() <= payload.len().max(12 + 256));
            prop_assert_eq!(parse(code, again.clone(), fds).unwrap().payload(), again);
        }
    }

    #[test]
    fn well_formed_messages_are_said_again_unchanged(ring in 0u32..300, num in any::<u32>(), on in 0u32..2, value in any::<u64>()) {
        for (code, payload) in [
            (2, longs(&[value])),
            (8, words(&[ring, num])),
            (10, words(&[ring, num & 0xffff])),
            (16, longs(&[value])),
            (18, words(&[ring, on])),
            (9, [words(&[ring, 0]), longs(&[value & !15, value & !3, value & !1, 0])].concat()),
            (25, [words(&[4, 4, 0]), words(&[num])].concat()),
            (24, [words(&[num % 200, 8, 1]), vec![0; 8]].concat()),
        ] {
            prop_assert_eq!(parse(code, payload.clone(), 0).unwrap().payload(), payload);
        }
    }
}

#[test]
fn memory_tables() {
    let one = [0x1000, 0x1000, 0x7000_0000, 0];
    let two = [0x2000, 0x1000, 0x8000_0000, 0x1000];
    let request = parse(5, table(&[one, two]), 2).unwrap();
    assert_eq!(request.payload(), table(&[one, two]));
    // User Mode Linux leaves room for a second region and says that there is one.
    let mut uml = table(&[one]);
    uml.resize(72, 0xaa);
    assert_eq!(parse(5, uml, 1).unwrap().payload(), table(&[one]));

    for (payload, fds) in [
        (table(&[]), 0),
        (table(&[one]), 0),
        (table(&[one]), 2),
        (words(&[2, 0]), 2),
        (words(&[u32::MAX, 0]), 0),
        (table(&[one; 9]), 8),
        (table(&[one, one]), 2),
        (table(&[one, [0x1fff, 1, 0x9000_0000, 0]]), 2),
        (table(&[one, [0x9000, 2, 0x7000_0fff, 0]]), 2),
        (table(&[[0, 0, 0, 0]]), 1),
        (table(&[[u64::MAX, 2, 0, 0]]), 1),
        (table(&[[0, 2, u64::MAX, 0]]), 1),
        (table(&[[0, u64::MAX, 0, 1]]), 1),
        (table(&[one])[..20].to_vec(), 1),
        ([table(&[one]), vec![0; 4000]].concat(), 1),
    ] {
        parse(5, payload, fds).unwrap_err();
    }
}

#[test]
fn what_is_out_of_range_is_refused() {
    for (code, payload, fds) in [
        (1, vec![0], 0),                                          // GET_FEATURES with a payload
        (1, vec![], 1),                                           // and with a descriptor
        (2, vec![0; 7], 0),                                       // SET_FEATURES too short
        (10, words(&[0, 0x1_0000]), 0),                           // a base of 17 bits
        (18, words(&[0, 2]), 0),                                  // enable by 2
        (12, longs(&[0]), 0),                                     // a kick without its descriptor
        (12, longs(&[0]), 2),                                     // with two
        (12, longs(&[0x100]), 1),                                 // with one though it says none
        (9, [words(&[0, 1]), longs(&[0, 0, 0, 0])].concat(), 0),  // dirty log
        (9, [words(&[0, 0]), longs(&[8, 0, 0, 0])].concat(), 0),  // misaligned
        (24, [words(&[250, 8, 0]), vec![0; 8]].concat(), 0),      // past the end
        (24, [words(&[u32::MAX, 8, 0]), vec![0; 8]].concat(), 0), // wrapping
        (25, [words(&[0, 8, 0]), vec![0; 7]].concat(), 0),        // fewer bytes than said
        (21, vec![], 0),                                          // no socket
        (31, vec![], 0),                                          // GET_INFLIGHT_FD, not offered
    ] {
        parse(code, payload, fds).unwrap_err();
    }
    assert!(matches!(parse(19, vec![1; 8], 0), Ok(Request::Unknown(19))));
    assert!(matches!(parse(u32::MAX, vec![], 0), Ok(Request::Unknown(u32::MAX))));
    assert!(matches!(parse(14, longs(&[0x103]), 0), Ok(Request::SetVringFd { ring: 3, fd: None, .. })));
}
