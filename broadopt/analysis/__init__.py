"""What is made of finished runs: tables, comparisons, status, the report, figures. No run is started here."""
