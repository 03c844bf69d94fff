//! The pages of a store's file as they stand on the disk: whether every tree in it is one.
//!
//! Owns what it knows of LMDB's file format (version 1, 64-bit words, the byte order of the
//! machine; `mdb.c`, "Meta page content" and "Page header"). LMDB checks nothing of it: a flipped
//! byte in a page's header shows nowhere while records are read, and ends the process, or spoils
//! the file, at the next write. Never opens the store and never writes. Called by `scan` before
//! LMDB sees the file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::StoreError;

const MAGIC: u32 = 0xbeef_c0de;
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
const NODE_BYTES: usize = 8;
/// A tree as it is described in a meta page, and in a node of the main tree.
const TREE_BYTES: usize = 48;
const META_BYTES: usize = 152;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const OVERFLOW: u16 = 0x04;
const META: u16 = 0x08;
const BIG_DATA: u16 = 0x01;
const SUB_TREE: u16 = 0x02;
/// No tree of this depth fits into any map.
const DEPTH_MAX: u16 = 32;
const NOWHERE: u64 = u64::MAX;

/// What is wrong, and in which page.
struct Wrong {
    page: u64,
    what: &'static str,
}

impl From<Wrong> for StoreError {
    fn from(Wrong { page, what }: Wrong) -> Self {
        Self::Page { page, what }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Where a tree begins, and how many pages and records it says it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tree {
    depth: u16,
    branches: u64,
    leaves: u64,
    overflows: u64,
    entries: u64,
    root: u64,
    order: Order,
}

/// How keys are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Bytes,
    /// Numbers of transactions, in the tree of free pages.
    Numbers,
}

/// What a walk has counted.
#[derive(Default)]
struct Counted {
    branches: u64,
    leaves: u64,
    overflows: u64,
    entries: u64,
}

impl Tree {
    fn read(bytes: &[u8], order: Order) -> Self {
        Self {
            depth: u16_at(bytes, 6),
            branches: u64_at(bytes, 8),
            leaves: u64_at(bytes, 16),
            overflows: u64_at(bytes, 24),
            entries: u64_at(bytes, 32),
            root: u64_at(bytes, 40),
            order,
        }
    }

    fn has(&self, counted: &Counted) -> bool {
        (self.branches, self.leaves) == (counted.branches, counted.leaves)
            && (self.overflows, self.entries) == (counted.overflows, counted.entries)
    }
}

/// One record, or the way to a page below.
struct Node<'p> {
    key: &'p [u8],
    flags: u16,
    /// The bytes that stand in the page.
    data: &'p [u8],
    /// How long the data is, wherever it stands.
    length: usize,
    /// Of a branch: which page.
    child: u64,
}

/// The keys that may stand in a page: from the first, which may, to the second, which may not.
#[derive(Clone, Copy)]
struct Between<'k>(Option<&'k [u8]>, Option<&'k [u8]>);

impl Order {
    fn ascends(self, one: &[u8], next: &[u8]) -> bool {
        match self {
            Self::Bytes => one < next,
            Self::Numbers => one.len() == 8 && next.len() == 8 && u64_at(one, 0) < u64_at(next, 0),
        }
    }

    fn admits(self, Between(least, below): Between<'_>, key: &[u8]) -> bool {
        least.is_none_or(|least| least == key || self.ascends(least, key))
            && below.is_none_or(|below| self.ascends(key, below))
    }
}

struct Pages {
    file: File,
    page_bytes: usize,
    /// One mark for each page that a tree, or the list of free pages, has named.
    named: Vec<bool>,
    /// Trees that stand in the main one.
    inner: Vec<(u64, Tree)>,
}

/// Checks the pages of the store's file at `path`; an empty or missing one has none.
///
/// # Errors
/// `Page`, or `Failed` when the file cannot be read.
pub fn check(path: &Path) -> Result<(), StoreError> {
    let failed = |cause| StoreError::Failed { doing: "read its file", cause: Box::new(cause) };
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(failed)?,
    };
    let length = file.metadata().map_err(failed)?.len();
    if length == 0 || cfg!(not(target_pointer_width = "64")) {
        return Ok(());
    }
    Ok(check_file(file, length)?)
}

fn check_file(file: File, length: u64) -> Result<(), Wrong> {
    let (page_bytes, meta) = newest_meta(&file)?;
    let last_page = u64_at(&meta, 136);
    let pages = length / u64::try_from(page_bytes).expect("small");
    if last_page < 1 || last_page >= pages {
        return Err(Wrong { page: last_page, what: "it is the last one, and not in the file" });
    }
    let named = vec![false; usize::try_from(last_page + 1).expect("within the file")];
    let mut pages = Pages { file, page_bytes, named, inner: Vec::new() };
    pages.named[..2].fill(true);
    let free = Tree::read(&meta[40..], Order::Numbers);
    let main = Tree::read(&meta[88..], Order::Bytes);
    pages.walk(&free, Walked::FreePages)?;
    pages.walk(&main, Walked::Main)?;
    for (page, tree) in std::mem::take(&mut pages.inner) {
        if tree.depth > DEPTH_MAX {
            return Err(Wrong { page, what: "it names a tree of an impossible depth" });
        }
        pages.walk(&tree, Walked::Table)?;
    }
    Ok(())
}

/// The page size and the newer one of the two meta pages, as LMDB chooses.
fn newest_meta(file: &File) -> Result<(usize, Vec<u8>), Wrong> {
    let wrong = |page| move |what| Wrong { page, what };
    let read = |page: u64, at: u64| -> Result<Vec<u8>, Wrong> {
        let mut bytes = vec![0; META_BYTES];
        let unread = |_| wrong(page)("it cannot be read");
        file.read_exact_at(&mut bytes, at).map_err(unread)?;
        let known = u32_at(&bytes, 16) == MAGIC && u32_at(&bytes, 20) == VERSION;
        let is_meta = u16_at(&bytes, 10) == META && u64_at(&bytes, 0) == page;
        if known && is_meta { Ok(bytes) } else { Err(wrong(page)("it is no meta page")) }
    };
    let first = read(0, 0)?;
    let page_bytes = u64::from(u32_at(&first, 40));
    if !page_bytes.is_power_of_two() || !(512..=32_768).contains(&page_bytes) {
        return Err(wrong(0)("its page size is impossible"));
    }
    let second = read(1, page_bytes)?;
    let newest = if u64_at(&second, 144) > u64_at(&first, 144) { second } else { first };
    Ok((usize::try_from(page_bytes).expect("small"), newest))
}

/// Which tree is walked: what its records hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walked {
    FreePages,
    Main,
    Table,
}

impl Pages {
    fn name(&mut self, page: u64) -> Result<(), Wrong> {
        let at = usize::try_from(page).ok().and_then(|at| self.named.get_mut(at));
        let named = at.ok_or(Wrong { page, what: "it is named, and not in the file" })?;
        if std::mem::replace(named, true) {
            return Err(Wrong { page, what: "it is named twice" });
        }
        Ok(())
    }

    fn read(&mut self, page: u64) -> Result<Vec<u8>, Wrong> {
        self.name(page)?;
        let mut bytes = vec![0; self.page_bytes];
        let at = page * u64::try_from(self.page_bytes).expect("small");
        let read = self.file.read_exact_at(&mut bytes, at);
        read.map_err(|_| Wrong { page, what: "it cannot be read" })?;
        if u64_at(&bytes, 0) != page {
            return Err(Wrong { page, what: "it says that it is another one" });
        }
        Ok(bytes)
    }

    fn walk(&mut self, tree: &Tree, walked: Walked) -> Result<(), Wrong> {
        let mut counted = Counted::default();
        if tree.root != NOWHERE {
            let between = Between(None, None);
            self.walk_page(tree, walked, (tree.root, tree.depth), between, &mut counted)?;
        }
        if tree.has(&counted) {
            Ok(())
        } else {
            Err(Wrong { page: tree.root, what: "its tree has not as much as was written" })
        }
    }

    /// The page at `place`: its number, and how many levels are left, its own included.
    fn walk_page(
        &mut self,
        tree: &Tree,
        walked: Walked,
        place: (u64, u16),
        between: Between<'_>,
        counted: &mut Counted,
    ) -> Result<(), Wrong> {
        let (page, levels) = place;
        let wrong = |what| Wrong { page, what };
        let bytes = self.read(page)?;
        let kind = match u16_at(&bytes, 10) {
            LEAF if levels == 1 => LEAF,
            BRANCH if (2..=DEPTH_MAX).contains(&levels) => BRANCH,
            _ => return Err(wrong("its flags are impossible there")),
        };
        let nodes = nodes(&bytes, kind).ok_or_else(|| wrong("its nodes do not fit into it"))?;
        // Of a branch the first key stands for nothing.
        let keys = &nodes[usize::from(kind == BRANCH).min(nodes.len())..];
        let in_order = keys.windows(2).all(|pair| tree.order.ascends(pair[0].key, pair[1].key));
        if !in_order || !keys.iter().all(|node| tree.order.admits(between, node.key)) {
            return Err(wrong("its keys are not in order"));
        }
        if kind == LEAF {
            counted.leaves += 1;
            counted.entries += u64::try_from(nodes.len()).expect("few");
            return nodes.iter().try_for_each(|node| self.take(page, walked, node, counted));
        }
        counted.branches += 1;
        for (at, node) in nodes.iter().enumerate() {
            let least = if at == 0 { between.0 } else { Some(node.key) };
            let below = nodes.get(at + 1).map_or(between.1, |next| Some(next.key));
            let place = (node.child, levels - 1);
            self.walk_page(tree, walked, place, Between(least, below), counted)?;
        }
        Ok(())
    }

    /// What a record leads to.
    fn take(
        &mut self,
        page: u64,
        walked: Walked,
        node: &Node<'_>,
        counted: &mut Counted,
    ) -> Result<(), Wrong> {
        let wrong = |what| Wrong { page, what };
        match (node.flags, walked) {
            (0, Walked::Table) => Ok(()),
            (0, Walked::FreePages) => self.name_free(page, node.data),
            (SUB_TREE, Walked::Main) if node.data.len() == TREE_BYTES => {
                self.inner.push((page, Tree::read(node.data, Order::Bytes)));
                Ok(())
            }
            (BIG_DATA, Walked::Table | Walked::FreePages) => {
                let first = u64_at(node.data, 0);
                let head = self.read(first)?;
                let wanted = (HEADER_BYTES - 1 + node.length) / self.page_bytes + 1;
                let pages = u64::from(u32_at(&head, 12));
                if u16_at(&head, 10) != OVERFLOW || Ok(wanted) != usize::try_from(pages) {
                    return Err(Wrong { page: first, what: "its head does not fit its record" });
                }
                counted.overflows += pages;
                (first + 1..first + pages).try_for_each(|page| self.name(page))?;
                if walked == Walked::FreePages {
                    let mut data = vec![0; node.length];
                    let at = first * u64::try_from(self.page_bytes).expect("small")
                        + u64::try_from(HEADER_BYTES).expect("small");
                    let read = self.file.read_exact_at(&mut data, at);
                    read.map_err(|_| wrong("what it leads to cannot be read"))?;
                    self.name_free(first, &data)?;
                }
                Ok(())
            }
            _ => Err(wrong("it has a record of an impossible kind")),
        }
    }

    /// A list of free pages: how many, and which, in descending order.
    fn name_free(&mut self, page: u64, list: &[u8]) -> Result<(), Wrong> {
        let wrong = Wrong { page, what: "its list of free pages is none" };
        let numbers: Vec<u64> = list.chunks_exact(8).map(|number| u64_at(number, 0)).collect();
        let Some((count, numbers)) = numbers.split_first() else { return Err(wrong) };
        let whole = list.len().is_multiple_of(8);
        let in_order = numbers.windows(2).all(|pair| pair[0] > pair[1]);
        if !whole || !in_order || usize::try_from(*count) != Ok(numbers.len()) {
            return Err(wrong);
        }
        numbers.iter().try_for_each(|page| self.name(*page))
    }
}

/// The nodes of a page, in the order of their keys; none unless they fill exactly its used part.
fn nodes(page: &[u8], kind: u16) -> Option<Vec<Node<'_>>> {
    let (lower, upper) = (usize::from(u16_at(page, 12)), usize::from(u16_at(page, 14)));
    if lower < HEADER_BYTES || lower > upper || upper > page.len() || !lower.is_multiple_of(2) {
        return None;
    }
    let mut nodes = Vec::with_capacity((lower - HEADER_BYTES) / 2);
    let mut places = Vec::with_capacity(nodes.capacity());
    for pointer in (HEADER_BYTES..lower).step_by(2) {
        let at = usize::from(u16_at(page, pointer));
        let head = page.get(at..at + NODE_BYTES).filter(|_| at >= upper)?;
        let low = u64::from(u16_at(head, 0)) | u64::from(u16_at(head, 2)) << 16;
        let flags = u16_at(head, 4);
        let key_end = at + NODE_BYTES + usize::from(u16_at(head, 6));
        let key = page.get(at + NODE_BYTES..key_end)?;
        let node = if kind == BRANCH {
            Node { key, flags: 0, data: &[], length: 0, child: low | u64::from(flags) << 32 }
        } else {
            let length = usize::try_from(low).ok()?;
            let here = if flags == BIG_DATA { 8 } else { length };
            let data = page.get(key_end..key_end.checked_add(here)?)?;
            Node { key, flags, data, length, child: NOWHERE }
        };
        let bytes = (NODE_BYTES + node.key.len() + node.data.len()).next_multiple_of(2);
        places.push((at, bytes));
        nodes.push(node);
    }
    places.sort_unstable();
    let filled =
        places.iter().try_fold(upper, |end, (at, bytes)| (*at == end).then_some(end + bytes))?;
    (filled == page.len()).then_some(nodes)
}
