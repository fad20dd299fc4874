"""What an audit leaves behind: `audit.json` written and read, shards merged, two audits compared, one accepted as the
next round's prior review."""
