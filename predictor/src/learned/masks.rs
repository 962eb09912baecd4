//! [`Masks`]: trees as the leaves that each split rules out, for several rows at once.
//!
//! A walk down a tree waits for every step. Here all splits of a tree are asked, in any order: where a row goes right, the
//! leaves to the left are out, and the first leaf that no split ruled out is the one that the walk would have reached
//! (QuickScorer, Lucchese et al., SIGIR 2015). A split is one comparison of a vector of rows.

/// Rows that are asked about at once.
pub(crate) const ROWS: usize = 32;

/// Most leaves of a tree: the bits of a mask.
const LEAVES: usize = u32::BITS as usize;

/// Trees with at most 32 leaves each.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Masks {
    trees: Vec<Tree>,
    splits: Vec<Split>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Tree {
    /// End of its splits; they start where those of the tree before it end.
    splits: usize,
    /// What the leaves predict, from left to right.
    values: [f32; LEAVES],
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Split {
    threshold: f32,
    feature: u16,
    /// The leaves that are not to the left.
    keeps: u32,
}

/// What stands at a node of a tree.
pub(super) enum Place {
    /// The end of a walk.
    Leaf(f32),
    /// To `right` where `feature` is not below `threshold`, to `left` otherwise.
    Split { feature: u16, threshold: f32, left: usize, right: usize },
}

impl Masks {
    /// Trees that start at `roots`, node by node; `None` when one has more than 32 leaves.
    pub(super) fn new(roots: impl Iterator<Item = usize>, place: impl Fn(usize) -> Place) -> Option<Self> {
        let mut masks = Self::default();
        for root in roots {
            let mut values = Vec::new();
            masks.add(root, &mut values, &place)?;
            values.resize(LEAVES, 0.0);
            masks.trees.push(Tree { splits: masks.splits.len(), values: values.try_into().ok()? });
        }
        Some(masks)
    }

    /// Adds what lies below a node of a tree, the values of whose leaves further left are there.
    fn add(&mut self, node: usize, values: &mut Vec<f32>, place: &impl Fn(usize) -> Place) -> Option<()> {
        match place(node) {
            Place::Leaf(value) => values.push(value),
            Place::Split { feature, threshold, left, right } => {
                let at = self.splits.len();
                self.splits.push(Split { threshold, feature, keeps: 0 });
                let leaves = values.len();
                self.add(left, values, place)?;
                let lefts = values.len() - leaves;
                self.add(right, values, place)?;
                // One leaf more lies to the right, so this is never all of them.
                self.splits[at].keeps = !(((1u64 << lefts) - 1) << leaves) as u32;
            }
        }
        (values.len() <= LEAVES).then_some(())
    }

    /// Hands `each` what the trees predict for the rows of `columns`, `[feature][row]`, tree by tree.
    #[inline(always)]
    pub(super) fn leaves(&self, columns: &[[f32; ROWS]], mut each: impl FnMut([f32; ROWS])) {
        let mut split = 0;
        for tree in &self.trees {
            let mut left = [u32::MAX; ROWS];
            for &Split { threshold, feature, keeps } in &self.splits[split..tree.splits] {
                let column = &columns[usize::from(feature)];
                for (left, &x) in left.iter_mut().zip(column) {
                    *left &= if x >= threshold { keeps } else { u32::MAX };
                }
            }
            let mut leaves = [0.0; ROWS];
            for (leaf, left) in leaves.iter_mut().zip(left) {
                *leaf = tree.values[left.trailing_zeros() as usize % LEAVES];
            }
            each(leaves);
            split = tree.splits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of `leaves` leaves that all hang to the right, or to the left.
    fn comb(leaves: usize, to_the_right: bool) -> Option<Masks> {
        let place = |node: usize| match node {
            _ if node + 1 == leaves => Place::Leaf(node as f32),
            _ if node >= leaves => Place::Leaf((node - leaves) as f32),
            _ if to_the_right => Place::Split {
                feature: 0,
                threshold: node as f32 + 0.5,
                left: leaves + node,
                right: node + 1,
            },
            _ => Place::Split {
                feature: 0,
                threshold: -(node as f32) - 0.5,
                left: node + 1,
                right: leaves + node,
            },
        };
        Masks::new([0].into_iter(), place)
    }

    #[test]
    fn every_leaf_of_the_deepest_tree_is_reached() {
        for to_the_right in [true, false] {
            let masks = comb(LEAVES, to_the_right).unwrap();
            for first in (0..LEAVES).step_by(ROWS) {
                let expected: [f32; ROWS] = std::array::from_fn(|row| (first + row) as f32);
                let x = if to_the_right { expected } else { expected.map(|leaf| -leaf) };
                let mut answers = Vec::new();
                masks.leaves(&[x], |leaves| answers.push(leaves));
                assert_eq!(answers, [expected]);
            }
            assert!(comb(LEAVES + 1, to_the_right).is_none());
        }
    }
}
