//! The state tree: a Merkle trie over the digests of keys, whose root is the same for the same
//! contents, whatever the order in which they came.
//!
//! Owns hashing and the canonical shape: a subtree with one leaf *is* that leaf, a subtree without
//! any is empty. A change costs as many hashes as the leaf is deep, about log2 of the number of
//! leaves. Called by the state.

use dagger_payload::id::StateRoot;

type Hash = [u8; 32];

const EMPTY: Hash = [0; 32];

#[derive(Debug, Default)]
enum Node {
    #[default]
    Empty,
    Leaf {
        key: Hash,
        hash: Hash,
    },
    Branch {
        children: Box<[Node; 2]>,
        hash: Hash,
    },
}

/// The tree.
#[derive(Debug, Default)]
pub(crate) struct StateTree {
    root: Node,
}

impl StateTree {
    pub(crate) fn root(&self) -> StateRoot {
        StateRoot(self.root.hash())
    }

    /// Sets the value of `key`.
    pub(crate) fn set(&mut self, key: &[u8], value: &[u8]) {
        let key = derive("dagger v1 state key", key);
        let value = derive("dagger v1 state value", value);
        let hash = pair("dagger v1 state leaf", &key, &value);
        let root = std::mem::take(&mut self.root);
        self.root = root.with(Node::Leaf { key, hash }, &key, 0);
    }

    /// Removes `key`, if it is there.
    pub(crate) fn remove(&mut self, key: &[u8]) {
        let key = derive("dagger v1 state key", key);
        let root = std::mem::take(&mut self.root);
        self.root = root.without(&key, 0);
    }
}

fn derive(context: &str, bytes: &[u8]) -> Hash {
    *blake3::Hasher::new_derive_key(context).update(bytes).finalize().as_bytes()
}

fn pair(context: &str, left: &Hash, right: &Hash) -> Hash {
    *blake3::Hasher::new_derive_key(context).update(left).update(right).finalize().as_bytes()
}

fn bit(key: &Hash, depth: usize) -> usize {
    usize::from(key[depth / 8] >> (7 - depth % 8) & 1)
}

impl Node {
    fn hash(&self) -> Hash {
        match self {
            Self::Empty => EMPTY,
            Self::Leaf { hash, .. } | Self::Branch { hash, .. } => *hash,
        }
    }

    fn branch(children: Box<[Self; 2]>) -> Self {
        let hash = pair("dagger v1 state node", &children[0].hash(), &children[1].hash());
        Self::Branch { children, hash }
    }

    fn with(self, leaf: Self, key: &Hash, depth: usize) -> Self {
        match self {
            Self::Empty => leaf,
            Self::Leaf { key: other, .. } if other == *key => leaf,
            Self::Leaf { key: other, hash } => {
                let mut children = Box::new([Self::Empty, Self::Empty]);
                children[bit(&other, depth)] = Self::Leaf { key: other, hash };
                let side = bit(key, depth);
                let below = std::mem::take(&mut children[side]);
                children[side] = below.with(leaf, key, depth + 1);
                Self::branch(children)
            }
            Self::Branch { mut children, .. } => {
                let side = bit(key, depth);
                let below = std::mem::take(&mut children[side]);
                children[side] = below.with(leaf, key, depth + 1);
                Self::branch(children)
            }
        }
    }

    fn without(self, key: &Hash, depth: usize) -> Self {
        match self {
            Self::Leaf { key: own, .. } if own == *key => Self::Empty,
            Self::Empty | Self::Leaf { .. } => self,
            Self::Branch { mut children, .. } => {
                let side = bit(key, depth);
                let below = std::mem::take(&mut children[side]);
                children[side] = below.without(key, depth + 1);
                let [left, right] = &mut *children;
                match (&left, &right) {
                    (Self::Empty, Self::Leaf { .. } | Self::Empty) => std::mem::take(right),
                    (Self::Leaf { .. }, Self::Empty) => std::mem::take(left),
                    _ => Self::branch(children),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree_of(numbers: impl IntoIterator<Item = u16>) -> StateTree {
        let mut tree = StateTree::default();
        for number in numbers {
            tree.set(&number.to_be_bytes(), b"value");
        }
        tree
    }

    #[test]
    fn the_root_depends_on_the_contents_alone() {
        let up = tree_of(0..500).root();
        assert_eq!(tree_of((0..500).rev()).root(), up);
        let mut more = tree_of(0..700);
        (500..700_u16).for_each(|number| more.remove(&number.to_be_bytes()));
        assert_eq!(more.root(), up);
        more.set(&7_u16.to_be_bytes(), b"other");
        assert_ne!(more.root(), up);
        (0..500_u16).for_each(|number| more.remove(&number.to_be_bytes()));
        assert_eq!(more.root(), StateTree::default().root());
    }
}
