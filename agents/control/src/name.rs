//! Names and hashes that are the same every time: a plan that is carried out twice creates once.

/// The alphabet of generated names: no vowels and nothing that looks like something else (Kubernetes `util/rand`).
pub const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The longest name that Kubernetes keeps in front of a generated suffix of five letters.
const BASE_MAX: usize = 63 - 5;

/// FNV-1a, 64 bits.
pub fn fnv64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// FNV-1a, 32 bits: what Kubernetes hashes pod templates with.
pub fn fnv32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, b| (hash ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

/// A finaliser for FNV's weak high bits (the mixing step of SplitMix64).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Five letters that depend on all of `seed` and on `attempt`.
pub fn suffix(seed: &[&str], attempt: u64) -> String {
    let mut bytes = Vec::new();
    for part in seed {
        bytes.extend_from_slice(part.as_bytes());
        bytes.push(0);
    }
    bytes.extend_from_slice(&attempt.to_le_bytes());
    let mut hash = mix(fnv64(&bytes));
    let base = ALPHABET.len() as u64;
    (0..5)
        .map(|_| {
            let letter = ALPHABET[(hash % base) as usize];
            hash /= base;
            char::from(letter)
        })
        .collect()
}

/// `base` and a suffix, cut as Kubernetes cuts it: the base gives way, the suffix stays.
pub fn generated(base: &str, suffix: &str) -> String {
    let mut end = base.len().min(BASE_MAX);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &base[..end])
}

/// A number in letters that are safe in names: its decimal digits, each mapped through [`ALPHABET`] (Kubernetes
/// `rand.SafeEncodeString`).
pub fn safe_encode(number: u32) -> String {
    number.to_string().bytes().map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_published_ones() {
        // Test vectors of the FNV authors: the empty string and "foobar".
        assert_eq!(fnv32(b""), 0x811c_9dc5);
        assert_eq!(fnv32(b"foobar"), 0xbf9c_f968);
        assert_eq!(fnv64(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn suffixes_are_stable_distinct_and_legal() {
        let mut seen = std::collections::BTreeSet::new();
        for attempt in 0..2_000 {
            let s = suffix(&["uid-1"], attempt);
            assert!(s.len() == 5 && s.bytes().all(|b| ALPHABET.contains(&b)));
            assert_eq!(s, suffix(&["uid-1"], attempt));
            seen.insert(s);
        }
        // 27^5 is 14 million: 2000 draws give 0.14 collisions on average.
        assert!(seen.len() >= 1_997, "{}", seen.len());
        assert_ne!(suffix(&["a", "b"], 0), suffix(&["ab", ""], 0));
    }

    #[test]
    fn long_bases_give_way() {
        assert_eq!(generated("web-", "abcde"), "web-abcde");
        assert_eq!(generated(&"x".repeat(80), "abcde").len(), 63);
    }

    #[test]
    fn safe_encode_maps_digit_by_digit() {
        // '0' is 48, 48 mod 27 = 21 -> '4'... the tail of Kubernetes' familiar hashes.
        assert_eq!(safe_encode(0), "4");
        assert_eq!(safe_encode(10), "54");
    }
}
