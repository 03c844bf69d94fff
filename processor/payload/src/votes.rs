//! How the votes of a committee are spread over operators, and what that survives.
//!
//! Owns the counting of faults per operator: a dishonest operator has all of his hosts. Never
//! decides who votes: the genesis and the judge do. Called by `daggerctl genesis` before anybody
//! signs, by the judge before voters change, and by the agent for `daggerctl ledger status`.

use std::collections::BTreeMap;

use crate::committee::Committee;
use crate::genesis::Genesis;
use crate::id::OperatorId;
use crate::roster::Roster;

/// From so many voting operators on, none may hold more than f votes. With fewer, each can outvote
/// what a committee survives, and that is said instead.
pub const BALANCED_OPERATORS_MIN: usize = 4;

/// The votes of each operator in one committee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Votes {
    committee: Committee,
    of: BTreeMap<OperatorId, usize>,
}

/// An operator with more votes than may be false.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.naming(self.operator))]
pub struct Unbalanced {
    /// Who.
    pub operator: OperatorId,
    /// How many of the votes are his.
    pub votes: usize,
    /// n.
    pub members: usize,
    /// f.
    pub faulty_max: usize,
}

impl Unbalanced {
    /// The same in words that call the operator `name`.
    pub fn naming(&self, name: impl std::fmt::Display) -> String {
        let Self { votes, members, faulty_max, .. } = self;
        format!(
            "operator {name} holds {votes} of {members} votes, and at most {faulty_max} may be \
             false: from four operators on, none may hold more"
        )
    }

    /// The same in words for the founders.
    pub fn at_founding(&self, genesis: &Genesis) -> String {
        let own = genesis.operators.iter().find(|operator| operator.id() == self.operator);
        own.map_or_else(|| self.to_string(), |own| self.naming(&own.name))
    }
}

impl Votes {
    /// The votes at the founding.
    pub fn at_founding(genesis: &Genesis) -> Self {
        Self::of(&Roster::founding(genesis), genesis.committee())
    }

    /// The votes of `committee`, whose members sit on seats of `roster`.
    pub fn of(roster: &Roster, committee: Committee) -> Self {
        let mut of = BTreeMap::new();
        for seat in committee.authors().filter_map(|author| roster.seat(author)) {
            *of.entry(seat.operator).or_insert(0) += 1;
        }
        Self { committee, of }
    }

    /// How many hosts may be dead or lie, whoever owns them: f.
    pub fn hosts_survived(&self) -> usize {
        self.committee.faulty_max()
    }

    /// How many operators may be dishonest, whichever they are: any so many hold together at most f
    /// votes.
    pub fn operators_survived(&self) -> usize {
        let mut votes: Vec<usize> = self.of.values().copied().collect();
        votes.sort_unstable_by(|a, b| b.cmp(a));
        let sums = votes.iter().scan(0, |sum, votes| {
            *sum += votes;
            Some(*sum)
        });
        sums.take_while(|sum| *sum <= self.committee.faulty_max()).count()
    }

    /// Whether no single operator can do more than the committee survives.
    ///
    /// # Errors
    /// [`Unbalanced`] with the operator of most votes, from [`BALANCED_OPERATORS_MIN`] operators
    /// on.
    pub fn check_balance(&self) -> Result<(), Unbalanced> {
        let (members, faulty_max) = (self.committee.members(), self.committee.faulty_max());
        let most = self.of.iter().max_by_key(|(_, votes)| **votes);
        match most {
            Some((operator, votes))
                if self.of.len() >= BALANCED_OPERATORS_MIN && *votes > faulty_max =>
            {
                Err(Unbalanced { operator: *operator, votes: *votes, members, faulty_max })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survived(votes: &[usize]) -> (usize, usize, Result<(), usize>) {
        let committee = Committee::new(votes.iter().sum()).expect("in range");
        let of = (1..).map(|number| OperatorId([number; 16])).zip(votes.iter().copied()).collect();
        let votes = Votes { committee, of };
        let balance = votes.check_balance().map_err(|unbalanced| unbalanced.votes);
        (votes.hosts_survived(), votes.operators_survived(), balance)
    }

    #[test]
    fn a_dishonest_operator_counts_with_all_of_his_hosts() {
        assert_eq!(survived(&[1]), (0, 0, Ok(())));
        assert_eq!(survived(&[1, 1, 1]), (0, 0, Ok(())));
        assert_eq!(survived(&[1, 1, 1, 1]), (1, 1, Ok(())));
        // Seven hosts survive any two of them, but not the operator of three.
        assert_eq!(survived(&[3, 2, 2]), (2, 0, Ok(())));
        assert_eq!(survived(&[2, 2, 2, 1]), (2, 1, Ok(())));
        assert_eq!(survived(&[1; 7]), (2, 2, Ok(())));
        assert_eq!(survived(&[2, 1, 1, 1, 1, 1]), (2, 1, Ok(())));
    }

    #[test]
    fn from_four_operators_on_none_holds_more_votes_than_may_be_false() {
        assert_eq!(survived(&[2, 1, 1]), (1, 0, Ok(())));
        assert_eq!(survived(&[2, 1, 1, 1]), (1, 0, Err(2)));
        assert_eq!(survived(&[1, 1, 3, 1, 1]), (2, 0, Err(3)));
        assert_eq!(survived(&[2, 2, 2, 2]), (2, 1, Ok(())));
    }
}
