//! What is written is read back, whatever the sizes; what is damaged is refused, whatever the damage.

use std::io::Write as _;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

type Records = std::collections::BTreeMap<Vec<u8>, Vec<u8>>;

fn fill<W: std::io::Write>(writer: &mut Writer<W>, buckets: &[(&str, &Records)]) -> Result<(), BoltError> {
    for (name, records) in buckets {
        writer.bucket(name.as_bytes(), |tree| records.iter().try_for_each(|(key, value)| tree.put(key.clone(), value.clone())))?;
    }
    Ok(())
}

fn write(buckets: &[(&str, &Records)]) -> Vec<u8> {
    let mut counting = Writer::counting();
    fill(&mut counting, buckets).unwrap();
    let (layout, _) = counting.finish().unwrap();
    let mut writer = Writer::begin(Vec::new(), layout).unwrap();
    fill(&mut writer, buckets).unwrap();
    let (again, bytes) = writer.finish().unwrap();
    assert_eq!((again, bytes.len() as u64), (layout, layout.bytes()));
    bytes
}

fn open(bytes: &[u8]) -> (tempfile::NamedTempFile, Result<Db, BoltError>) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let db = Db::open(file.path(), bytes.len() as u64);
    (file, db)
}

fn read_all(db: &Db) -> Result<Vec<(String, Records)>, BoltError> {
    let mut all = Vec::new();
    for bucket in db.buckets()? {
        let mut cursor = db.cursor(&bucket)?;
        let mut records = Records::new();
        while let Some((key, value)) = cursor.next()? {
            records.insert(key.to_vec(), value.to_vec());
        }
        all.push((String::from_utf8_lossy(&bucket.name).into_owned(), records));
    }
    Ok(all)
}

fn many(n: u32, value: usize) -> Records {
    (0..n).map(|i| (i.to_be_bytes().to_vec(), vec![i as u8; value])).collect()
}

#[test]
fn sizes_around_every_edge_read_back() {
    // One leaf; leaf after leaf; three levels; values of a page, of a page less the heads, and of many pages.
    for (n, value) in [(0, 0), (1, 0), (1, PAGE), (1, PAGE - PAGE_HEAD - ELEMENT - 4), (150, 5), (5_000, 40), (40_000, 1), (20, 100_000)] {
        let (records, none) = (many(n, value), Records::new());
        let bytes = write(&[("a", &none), ("key", &records), ("z", &none)]);
        let (_file, db) = open(&bytes);
        let db = db.unwrap();
        assert_eq!(db.size(), bytes.len() as u64);
        let expected = [("a", &none), ("key", &records), ("z", &none)].map(|(name, records)| (name.to_owned(), records.clone()));
        assert!(read_all(&db).unwrap() == expected, "{n} records of {value} bytes");
    }
}

#[test]
fn a_deep_tree_has_no_page_that_is_not_reached() {
    let records = many(40_000, 1);
    let bytes = write(&[("key", &records)]);
    let mut seen = vec![false; bytes.len() / PAGE];
    seen[..3].fill(true);
    let mut todo = vec![Meta::get(&bytes[PAGE_HEAD..]).unwrap().root];
    let mut depth_first = 0;
    while let Some(id) = todo.pop() {
        let at = id as usize * PAGE;
        let node = Node::at(&bytes, at);
        seen[id as usize..=id as usize + node.0.overflow as usize].fill(true);
        if node.0.flags == BRANCH {
            assert!(node.0.count >= 1);
            depth_first += 1;
            todo.extend((0..usize::from(node.0.count)).map(|i| (&bytes[at + PAGE_HEAD + i * ELEMENT + 8..]).get_u64_le()));
        } else if let Some(bucket) = node.1 {
            todo.push(bucket);
        }
    }
    assert!(depth_first > 2, "the tree has more than one level of branches");
    assert_eq!(seen.iter().position(|seen| !seen), None, "a page that nobody reaches");
}

struct Node;

impl Node {
    /// The head of a page, and the root of the only bucket if it is the leaf of buckets.
    fn at(bytes: &[u8], at: usize) -> (Head, Option<u64>) {
        let head = Head::get(&bytes[at..]);
        let mut element = &bytes[at + PAGE_HEAD..];
        let is_bucket = head.flags == LEAF && head.count == 1 && element.get_u32_le() == IS_BUCKET;
        let (position, key) = (element.get_u32_le() as usize, element.get_u32_le() as usize);
        let bucket = is_bucket.then(|| (&bytes[at + PAGE_HEAD + position + key..]).get_u64_le());
        (head, bucket)
    }
}

#[test]
fn what_is_out_of_order_is_refused() {
    let mut writer = Writer::counting();
    let bad = writer.bucket(b"b", |tree| tree.put("2", "").and_then(|()| tree.put("1", "")));
    assert!(bad.unwrap_err().to_string().contains("out of order"));
    let mut writer = Writer::counting();
    assert!(writer.bucket(b"b", |tree| tree.put("", "x")).is_err(), "bbolt has no empty keys");
    let mut writer = Writer::counting();
    writer.bucket::<BoltError>(b"b", |_| Ok(())).unwrap();
    assert!(writer.bucket::<BoltError>(b"a", |_| Ok(())).is_err());
}

#[test]
fn one_damaged_meta_page_is_no_harm_and_two_are_named() {
    let records = many(10, 10);
    let good = write(&[("key", &records)]);
    for page in [0, 1] {
        let mut bytes = good.clone();
        bytes[page * PAGE + PAGE_HEAD + 20] ^= 1;
        assert!(read_all(&open(&bytes).1.unwrap()).is_ok(), "meta page {page}");
    }
    let mut bytes = good.clone();
    bytes[PAGE_HEAD + 20] ^= 1;
    bytes[PAGE + PAGE_HEAD + 20] ^= 1;
    let error = open(&bytes).1.err().unwrap().to_string();
    assert!(error.contains("neither meta page is whole"), "{error}");
    let error = open(&good[..good.len() - 1]).1.err().unwrap().to_string();
    assert!(error.contains("the file ends here"), "{error}");
    assert!(open(b"").1.is_err());
}

#[test]
fn pages_in_circles_come_to_an_end() {
    let records = many(5_000, 40);
    let mut bytes = write(&[("key", &records)]);
    // Every child of every branch is the branch itself.
    for id in 3..bytes.len() / PAGE {
        let at = id * PAGE;
        let head = Head::get(&bytes[at..]);
        if head.id == id as u64 && head.flags == BRANCH {
            for i in 0..usize::from(head.count) {
                let child = at + PAGE_HEAD + i * ELEMENT + 8;
                bytes[child..child + 8].copy_from_slice(&(id as u64).to_le_bytes());
            }
        }
    }
    assert!(read_all(&open(&bytes).1.unwrap()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_records_read_back(
        a in btree_map(vec(any::<u8>(), 1..40), vec(any::<u8>(), 0..300), 0..200),
        b in btree_map(vec(any::<u8>(), 1..3000), vec(any::<u8>(), 0..9000), 0..12),
    ) {
        let bytes = write(&[("a", &a), ("b", &b)]);
        let (_file, db) = open(&bytes);
        prop_assert!(read_all(&db.unwrap()).unwrap() == [("a".to_owned(), a), ("b".to_owned(), b)]);
    }

    /// Damage may go unnoticed here (the file's hash is what finds it), but must never panic, hang, or give more than there is.
    #[test]
    fn damage_is_survived(at in any::<prop::sample::Index>(), value in any::<u8>(), n in 0..2000_u32) {
        let records = many(n, 30);
        let mut bytes = write(&[("key", &records)]);
        let at = at.index(bytes.len());
        bytes[at] = value;
        let (_file, db) = open(&bytes);
        if let Ok(all) = db.and_then(|db| read_all(&db)) {
            prop_assert!(all.iter().map(|(_, records)| records.len()).sum::<usize>() <= 70_000);
        }
    }
}
