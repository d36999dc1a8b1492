//! A line diff of two documents, for a person to read.

/// Tables larger than this are not computed (cells; 4 MB of memory): the diff says only how much changes.
const MAX_CELLS: usize = 1 << 20;

/// The lines that go (`-`) and come (`+`), in order; lines that stay are left out.
pub(super) fn lines(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[head..], &new[head..]);
    let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[..old.len() - tail], &new[..new.len() - tail]);
    if (old.len() + 1) * (new.len() + 1) > MAX_CELLS {
        return format!("{} lines are replaced by {}\n", old.len(), new.len());
    }
    // common[i][j]: the longest common subsequence of old[i..] and new[j..].
    let mut common = vec![vec![0_u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] =
                if old[i] == new[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, String::new());
    let mut say = |sign: char, line: &str| {
        out.push(sign);
        out.push_str(line);
        out.push('\n');
    };
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            say('-', old[i]);
            i += 1;
        } else {
            say('+', new[j]);
            j += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_change_are_shown() {
        assert_eq!(lines("a\nb\nc\nd", "a\nx\nc\ny\nd"), "-b\n+x\n+y\n");
        assert_eq!(lines("a\nb", "a\nb"), "");
        assert_eq!(lines("", "a"), "+a\n");
    }

    #[test]
    fn a_huge_change_is_only_counted() {
        let many = |what: &str| (0..2000).map(|n| format!("{what}{n}\n")).collect::<String>();
        assert_eq!(lines(&many("a"), &many("b")), "2000 lines are replaced by 2000\n");
    }
}
